"""How often a language model writes an item of the catalog when nothing holds it to the catalog."""

from typing import TYPE_CHECKING

from hf_rec.columns import HISTORY


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_rec.recommenders.language_model import LanguageModelRecommender


def greedy_valid_ratio(recommender: "LanguageModelRecommender", dataset: "Dataset", batch_size: int = 32) -> float:
    """
    Share of rows for which free greedy generation, with nothing to hold it to the catalog, writes an item of it.

    Search over the trie cannot write anything else, so this says how much of a language model's probability is on the
    catalog, not how well it ranks.

    Args:
        recommender ([`LanguageModelRecommender`]): Whose model writes.
        dataset (`datasets.Dataset`): Split rows.
        batch_size (`int`, *optional*, defaults to `32`): Histories at a time.
    """
    import torch

    from hf_rec.models.evaluation_mode import evaluation_mode

    model, trie, valid = recommender.model, recommender.trie, 0
    for start in range(0, len(dataset), batch_size):
        input_ids, mask = recommender.prompt_tokens(dataset[start : start + batch_size][HISTORY])
        with evaluation_mode(model):
            written = model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                max_new_tokens=trie.max_depth,
                do_sample=False,
                num_beams=1,
                pad_token_id=recommender.tokenizer.pad_token_id or 0,
            )[:, input_ids.shape[1] :]
        nodes = torch.full_like(written[:, 0], trie.root)
        found = torch.zeros_like(nodes, dtype=torch.bool)
        for tokens in written.T:
            nodes = trie.step(nodes, tokens)
            found |= trie.leaf(nodes) >= 0
        valid += int(found.sum())
    return valid / len(dataset)
