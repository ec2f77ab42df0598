import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from hf_rec.columns import HISTORY, TARGET
from hf_rec.hub import load_recommender
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_model_in_few_bits_trains_an_adapter(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, bits):
    pytest.importorskip("bitsandbytes", reason="quantization is an extra: pip install hf_rec[quantization]")
    model = tiny_lm("llama").config
    model.hidden_size, model.intermediate_size, model.head_dim = 128, 128, 64  # kernels need whole blocks
    LlamaForCausalLM(model).save_pretrained(tmp_path / "base")
    bpe_tokenizer.save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    args = MSLConfig(
        str(tmp_path / "run"),
        model_init_kwargs={"quantization_config": quantization, "dtype": torch.float32},
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({HISTORY: [[1, 2], [3], [4, 5]], TARGET: [3, 4, 6]})
    trainer = MSLTrainer(
        str(tmp_path / "base"),
        args,
        train_dataset=rows,
        eval_dataset=rows,
        catalog=tiny_catalog,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if bits == 8:  # on a CPU, bitsandbytes gives no gradient through four bits once a model has been in eval mode
        assert losses[-1] < losses[0]
    trainer.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    loaded = load_recommender(tmp_path / "run", device="cpu").model.get_base_model()
    assert loaded.is_quantized
    assert getattr(loaded.hf_quantizer.quantization_config, f"load_in_{bits}bit")
