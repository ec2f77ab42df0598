"""What a model folder is made of: the names of its files, and their hashes."""

import hashlib
import json
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
INDEX_FILE = "recommender.json"
ARRAYS_FILE = "recommender.safetensors"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# What nobody needs to recommend, formats that can hold code, and predictions (parquet), which name users.
NOT_UPLOADED = "checkpoint-* runs/* .* *.parquet *.pt *.pth *.bin *.pkl *.pickle *.ckpt *.py".split()


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash of the vocabulary and the special tokens."""
    state = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
