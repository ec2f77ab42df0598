import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from hf_rec.columns import HISTORY, TARGET
from hf_rec.trainers.msl.config import MSLConfig
from hf_rec.trainers.msl.trainer import MSLTrainer


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_model_in_few_bits_trains_an_adapter(tmp_path, tiny_lm, bpe_tokenizer, tiny_catalog, bits):
    pytest.importorskip("bitsandbytes", reason="quantization is an extra: pip install hf_rec[quantization]")
    tiny_lm("llama").save_pretrained(tmp_path / "base")
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
    before = trainer.evaluate()["eval_nll"]
    trainer.train()
    assert trainer.evaluate()["eval_nll"] < before
    trainer.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
