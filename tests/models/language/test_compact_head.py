import copy
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from hf_rec.models.language.compact_head import CompactHead


VOCAB = 40
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
}
CONFIGS = {
    "tied GPT-2": GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=VOCAB, n_positions=32),
    "untied Llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "soft-capped Gemma-2": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0),
}
LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}
ADAPTERS = {
    "LoRA on attention": LoraConfig(**LORA, target_modules=["q_proj", "v_proj"]),
    "LoRA on the head": LoraConfig(**LORA, target_modules=["q_proj", "lm_head"]),
    "a trained copy of the head": LoraConfig(**LORA, target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


def make_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCAB, (3, 7), generator=generator)


def selected(model, head, positions, columns):
    with head.select(positions, columns):
        return model(input_ids=batch()).logits


def check_selection(model):
    head = CompactHead.install(model)
    full = model(input_ids=batch()).logits
    positions, columns = torch.tensor([0, 20, 5, 5]), torch.tensor([39, 3, 7])
    logits = selected(model, head, positions, columns)
    assert logits.shape == (1, 4, 3)
    torch.testing.assert_close(logits[0], full.flatten(0, 1)[positions][:, columns])
    torch.testing.assert_close(selected(model, head, positions, None)[0], full.flatten(0, 1)[positions])
    with head.select_blocks([(positions[:1], columns), (positions[1:], torch.tensor([1]))]):
        flat = model(input_ids=batch()).logits
    expected = torch.cat([full.flatten(0, 1)[0, columns], full.flatten(0, 1)[positions[1:], 1]])
    torch.testing.assert_close(flat[0, 0], expected)
    torch.testing.assert_close(model(input_ids=batch()).logits, full, msg="outside select the head is unchanged")


@pytest.mark.parametrize("name", CONFIGS)
def test_selected_logits_are_those_of_the_whole_head(name):
    check_selection(make_model(CONFIGS[name]))


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_on_the_head_is_respected(name):
    model = get_peft_model(make_model(CONFIGS["untied Llama"]), ADAPTERS[name]).eval()
    check_selection(model)
    with model.disable_adapter():
        check_selection(model)


@pytest.mark.parametrize("name", ["tied GPT-2", "untied Llama"])
def test_trained_rows_of_some_tokens_are_respected(name):
    base = make_model(CONFIGS[name])
    embeddings = "wte" if name == "tied GPT-2" else "embed_tokens"
    indices = {embeddings: [3, 30]} | ({} if name == "tied GPT-2" else {"lm_head": [3, 30]})
    target = "c_attn" if name == "tied GPT-2" else "q_proj"
    config = LoraConfig(**LORA, target_modules=[target], trainable_token_indices=indices)
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if "trainable_tokens_delta" in weight_name:
                weight.add_(1)
    assert CompactHead.install(model) is not None
    check_selection(model)
    head, positions, columns = CompactHead.install(model), torch.tensor([4, 9]), torch.tensor([3, 5])
    model(input_ids=batch()).logits.flatten(0, 1)[positions][:, columns].pow(2).sum().backward()
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    expected = {key: weight.grad.clone() for key, weight in trained.items() if weight.grad is not None}
    model.zero_grad()
    selected(model, head, positions, columns).pow(2).sum().backward()
    for key, gradient in expected.items():
        torch.testing.assert_close(trained[key].grad, gradient, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        check_selection(model)


def test_a_head_with_a_bias_keeps_it():
    model = make_model(CONFIGS["untied Llama"])
    model.lm_head = torch.nn.Linear(16, VOCAB, bias=True)
    check_selection(model)


def test_an_adapter_added_after_the_first_use_is_seen():
    model = make_model(CONFIGS["untied Llama"])
    check_selection(model)
    check_selection(get_peft_model(model, ADAPTERS["LoRA on the head"]).eval())


def test_gradients_are_those_of_the_whole_head():
    compact = make_model(CONFIGS["tied GPT-2"])
    whole = copy.deepcopy(compact)
    positions, columns = torch.tensor([0, 20, 5]), torch.tensor([39, 3, 7])
    selected(compact, CompactHead.install(compact), positions, columns).square().sum().backward()
    whole(input_ids=batch()).logits.flatten(0, 1)[positions][:, columns].square().sum().backward()
    for (name, parameter), other in zip(compact.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_the_first_install_serves_all_and_a_deep_copy_has_a_head_of_its_own():
    model = make_model(CONFIGS["untied Llama"])
    head = CompactHead.install(model)
    assert CompactHead.install(model) is head
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    twin_head = CompactHead.install(twin)
    assert twin_head is not head
    assert not selected(twin, twin_head, torch.tensor([0]), torch.tensor([1, 2])).any()
    check_selection(model)


def test_weights_are_saved_and_loaded_under_the_same_names(tmp_path):
    model = make_model(CONFIGS["untied Llama"])
    names = list(model.state_dict())
    CompactHead.install(model)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    torch.testing.assert_close(loaded(input_ids=batch()).logits, model(input_ids=batch()).logits)


def test_a_head_that_cannot_be_seen_through_is_named_and_left_alone(caplog):
    class Opaque(torch.nn.Linear):
        pass

    model = make_model(CONFIGS["untied Llama"])
    model.lm_head = Opaque(16, VOCAB, bias=False)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING):
        assert CompactHead.install(model) is None
    assert "Opaque" in caplog.text
    assert model(input_ids=batch()).logits.shape == (3, 7, VOCAB)


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputed_activations_give_the_same_gradients(name):
    kept, recomputed = make_model(CONFIGS[name]).train(), make_model(CONFIGS[name]).train()
    recomputed.gradient_checkpointing_enable()
    for model in (kept, recomputed):
        for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
            dropout.p = 0.0
        head = CompactHead.install(model)
        with head.select_blocks(
            [(torch.tensor([0, 5]), torch.tensor([3])), (torch.tensor([20]), torch.tensor([1, 2]))]
        ):
            loss = model(input_ids=batch(), use_cache=False).logits.square().sum()
        loss.backward()  # after the selection is over
    for parameter, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_another_thread_sees_no_selection():
    model = make_model(CONFIGS["untied Llama"])
    head = CompactHead.install(model)
    with head.select(torch.tensor([0]), torch.tensor([3])), ThreadPoolExecutor(1) as pool:
        shape = pool.submit(lambda: model(input_ids=batch()).logits.shape).result()
    assert shape == (3, 7, VOCAB)


def test_threads_that_install_at_once_get_one_head():
    model = make_model(CONFIGS["untied Llama"])
    with ThreadPoolExecutor(4) as pool:
        heads = set(pool.map(lambda _: CompactHead.install(model), range(8)))
    assert len(heads) == 1
    check_selection(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chosen_columns_are_computed_in_float32(dtype):
    model = make_model(CONFIGS["untied Llama"]).to(dtype)
    hidden = model.model(input_ids=batch()).last_hidden_state
    positions, columns = torch.tensor([0, 20]), torch.tensor([39, 3, 7])
    expected = hidden.double().flatten(0, 1)[positions] @ model.lm_head.weight.double()[columns].t()
    for autocast in (False, True):
        with torch.autocast("cpu", dtype, enabled=autocast):
            logits = selected(model, CompactHead.install(model), positions, columns)[0]
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_head_that_is_split_over_processes_is_refused():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model = make_model(CONFIGS["untied Llama"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        weight = distribute_tensor(model.lm_head.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
        model.lm_head.weight = torch.nn.Parameter(weight)
        with pytest.raises(ValueError, match="tensor-parallel plan"):
            selected(model, CompactHead.install(model), torch.tensor([0]), torch.tensor([1]))
    finally:
        dist.destroy_process_group()
