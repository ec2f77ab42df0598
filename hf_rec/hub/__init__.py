"""
One folder is a recommender: weights or an adapter, tokenizer, catalog, prompt, trie, and `recommender.json`, which
says how to rank with them and holds the hash of each. Safetensors and JSON alone: nothing in such a folder is code.
"""

from hf_rec.hub.change_catalog import change_catalog
from hf_rec.hub.files import read_index
from hf_rec.hub.load import load_base, load_recommender
from hf_rec.hub.push import push_recommender
from hf_rec.hub.save import save_control, save_recommender
from hf_rec.hub.save_fused import save_fused
from hf_rec.hub.save_grounded import save_grounded
from hf_rec.hub.save_reranked import save_reranked


__all__ = [
    "change_catalog",
    "load_base",
    "load_recommender",
    "push_recommender",
    "read_index",
    "save_control",
    "save_fused",
    "save_grounded",
    "save_recommender",
    "save_reranked",
]
