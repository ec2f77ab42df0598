"""A model that grows by path tokens: those rows and no others, reproducibly, tied and untied."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import embedding

from hf_rec.models.language.path_tokens import grow_vocabulary, num_rows


KINDS = ["gpt2", "llama"]  # tied, untied


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_new_rows_are_written_and_tying_stays(tiny_lm, kind):
    model, before = tiny_lm(kind), tiny_lm(kind).state_dict()
    rows = num_rows(model)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    grow_vocabulary(model, rows + 3, [rows, rows + 1, rows + 2], seed=1)
    assert torch.equal(torch.rand(1), expected), "the global random state moved"
    tied = kind == "gpt2"
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert model.config.vocab_size == rows + 3 and model.get_output_embeddings().out_features == rows + 3
    for name, weight in model.state_dict().items():
        assert torch.equal(weight[: len(before[name])], before[name]), name
    tokens = torch.tensor([[rows + 2, 5]])
    assert torch.equal(model.get_input_embeddings()(tokens), embedding(tokens, model.get_input_embeddings().weight))
    again = tiny_lm(kind)
    grow_vocabulary(again, rows + 3, [rows, rows + 1, rows + 2], seed=1)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_lie_around_the_mean_of_the_vocabulary_with_its_spread(tiny_lm, kind):
    model = tiny_lm(kind)
    rows, count = num_rows(model), 2000
    grow_vocabulary(model, rows + count, range(rows, rows + count))
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        old, new = layer.weight[:rows], layer.weight[rows:]
        spread = old.std(dim=0)
        # The mean of 2,000 draws lies within 5 / sqrt(2000) of their spread; their spread within 10 %
        assert ((new.mean(dim=0) - old.mean(dim=0)).abs() < 5 / count**0.5 * spread).all()
        torch.testing.assert_close(new.std(dim=0), spread, rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_words_is_the_mean_of_their_rows(tiny_lm, kind):
    model = tiny_lm(kind)
    rows = num_rows(model)
    grow_vocabulary(model, rows + 2, [rows, rows + 1], words={rows: np.array([7, 9, 7])})
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        torch.testing.assert_close(layer.weight[rows], (2 * layer.weight[7] + layer.weight[9]) / 3)
        assert layer.weight[rows + 1].abs().sum() > 0


def test_spare_rows_of_a_vocabulary_are_used_first(tiny_lm):
    model = tiny_lm("llama", vocab_size=500)
    spare = model.get_input_embeddings().weight[400:402].detach().clone()
    grow_vocabulary(model, 402, [400, 401])
    assert num_rows(model) == 500
    assert not torch.equal(model.get_input_embeddings().weight[400:402], spare)


def test_the_rows_of_a_weight_that_zero_keeps_in_pieces_are_counted_whole(tiny_lm):
    model = tiny_lm("llama")
    rows, weight = num_rows(model), model.get_input_embeddings().weight
    weight.ds_shape, weight.data = weight.shape, torch.empty(0)  # what DeepSpeed leaves on a process
    assert num_rows(model) == rows


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_zero_keeps_in_pieces_grows_by_the_same_rows(tiny_lm, launch, tmp_path, kind):
    pytest.importorskip("deepspeed", reason="deepspeed is an extra: pip install hf_rec[deepspeed]")
    model = tiny_lm(kind)
    model.save_pretrained(tmp_path / "base")
    launch(Path(__file__).with_name("grow_sharded.py"), tmp_path / "base", tmp_path)
    rows = num_rows(model)
    grow_vocabulary(model, rows + 3, [rows, rows + 1, rows + 2], seed=1)
    for process in range(2):
        found = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        for name, weight in model.state_dict().items():
            assert torch.equal(found[name], weight), (process, name)
