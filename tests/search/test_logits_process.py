import pytest
import torch
from transformers import GenerationConfig

from hf_rec.search.logits_process import TrieLogitsProcessor

from .conftest import PATHS, SEP


def generate(model, problem, processor, user, **settings):
    config = GenerationConfig(
        max_new_tokens=problem.csr.max_depth,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=SEP,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        **settings,
    )
    return model.generate(**problem.prompt(user), generation_config=config, logits_processor=[processor])


def leaf_of(problem, tokens):
    tokens = tokens.tolist()
    return problem.paths.index(tokens[: tokens.index(SEP) + 1])


class TestTrieLogitsProcessor:
    def test_valid_scores_by_hand(self, problem):
        # Below [1] are 2 and 4, with weights 1 and 3; token 9 has a far greater weight and is not allowed.
        scores = torch.zeros(1, 20)
        scores[0, 4], scores[0, 9] = torch.tensor(3.0).log(), 50.0
        out = TrieLogitsProcessor(problem.csr, prompt_length=2)(torch.tensor([[8, 8, 1]]), scores)
        expected = torch.full((1, 20), -torch.inf)
        expected[0, 2], expected[0, 4] = torch.tensor(0.25).log(), torch.tensor(0.75).log()
        torch.testing.assert_close(out, expected)

    @pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
    def test_raw_logits_and_log_probabilities_give_the_same(self, problem, scoring):
        processor = TrieLogitsProcessor(problem.csr, prompt_length=1, tau=1.7, scoring=scoring)
        input_ids, logits = torch.tensor([[8, 3], [8, 5]]), torch.randn(2, 20)
        torch.testing.assert_close(processor(input_ids, logits), processor(input_ids, logits.log_softmax(dim=1)))

    def test_a_row_off_the_trie_is_dead_and_a_finished_one_repeats_its_end(self, problem):
        input_ids = torch.tensor([[8, 13, 1, 2], [8, 2, SEP, 0], [8, 1, 2, SEP]])
        for scoring in ("valid", "full_vocab"):
            out = TrieLogitsProcessor(problem.csr, prompt_length=1, scoring=scoring)(input_ids, torch.randn(3, 20))
            assert not out.isnan().any()
            assert out[0].tolist() == [-torch.inf] * 20
            assert out.isfinite().sum(dim=1).tolist() == [0, 1, 1]
            assert out[1, 0] == 0 and out[2, SEP] == 0
        out = TrieLogitsProcessor(problem.csr, prompt_length=1, eos_token_id=18)(input_ids, torch.randn(3, 20))
        assert out[1, 18] == 0 and out[2, 18] == 0

    @pytest.mark.parametrize("scoring", ["valid", "full_vocab"])
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    def test_generate_with_enough_beams_is_brute_force(self, problem, tiny_lm, scoring, kind):
        model = tiny_lm(kind, vocab_size=20)
        exact = problem.exact_scores(model, tau=1.3, scoring=scoring)
        for user in range(len(problem.prompts)):
            processor = TrieLogitsProcessor(problem.csr, len(problem.prompts[user]), tau=1.3, scoring=scoring)
            found = generate(
                model, problem, processor, user, num_beams=12, num_return_sequences=12, length_penalty=0.0
            )
            leaves = [leaf_of(problem, row[len(problem.prompts[user]) :]) for row in found.sequences]
            assert leaves == exact[user].argsort(descending=True).tolist()
            torch.testing.assert_close(found.sequences_scores, exact[user, leaves])
        if scoring == "valid":
            torch.testing.assert_close(exact.exp().sum(dim=1), torch.ones(len(exact)))

    def test_greedy_search_and_sampling_write_items(self, problem, tiny_lm):
        model = tiny_lm(vocab_size=20)
        processor = TrieLogitsProcessor(problem.csr, len(problem.prompts[0]))
        inputs = {key: value.repeat(40, 1) for key, value in problem.prompt(0).items()}
        for do_sample in (False, True):
            rows = model.generate(
                **inputs,
                logits_processor=[processor],
                do_sample=do_sample,
                top_k=0,
                max_new_tokens=problem.csr.max_depth,
                eos_token_id=SEP,
                pad_token_id=0,
            )
            leaves = {leaf_of(problem, row[len(problem.prompts[0]) :]) for row in rows}
            assert len(leaves) == 1 if not do_sample else len(leaves) > 3

    def test_wrong_arguments_are_named(self, problem):
        with pytest.raises(ValueError, match="`tau` must be greater than 0, got 0"):
            TrieLogitsProcessor(problem.csr, 1, tau=0)
        with pytest.raises(ValueError, match="`scoring` must be one of 'valid', 'full_vocab', got 'all'"):
            TrieLogitsProcessor(problem.csr, 1, scoring="all")


def test_the_problem_has_what_makes_a_trie_hard(problem):
    assert len(problem.csr) == 12 and len(PATHS) == 13
    assert (problem.csr.num_children == 1).sum() > 4
    assert problem.csr.items(problem.paths.index([7, SEP])) == [11, 12]
