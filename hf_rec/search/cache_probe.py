"""
Which attention cache drives a search: found out on the model itself.

A short search runs with the cache and is compared with one forward pass over the whole sequences. Models whose cache
goes by another name, or whose recurrent state cannot be cut, padded or copied as a search does, are refused: their
lists would be wrong, and their certificates too.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hf_rec.models.evaluation_mode import evaluation_mode
from hf_rec.models.language.relative_positions import RelativePositions
from hf_rec.search.live_beams import Extension
from hf_rec.search.model_inputs import base_model, decoder_start_token, is_encoder_decoder
from hf_rec.search.prefix_cache import NO_TOKEN, Prefixes, RowPrefixes, TreePrefixes
from hf_rec.trie.csr import TrieCSR


# Largest difference of a logit, in standard deviations of the logits, that passes for rounding
_TOLERANCE, _TOLERANCE_HALF = 1e-4, 0.3
_WORDS = 8  # different tokens of the probe, at most


@dataclass(frozen=True)
class Ability:
    """What speaks against either cache; `None` where nothing does."""

    tree: str | None
    rows: str | None


_KNOWN: "WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Ability]]" = WeakKeyDictionary()
_PROBING = Lock()  # held while a model is probed, once, never while one is searched


def open_prefixes(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    trie: TrieCSR,
    any_process: Callable[[bool], bool] = bool,
    start: Tensor | None = None,
) -> Prefixes:
    """
    Start the fastest cache that `model` can use: [`TreePrefixes`] or [`RowPrefixes`].

    Args:
        model (`torch.nn.Module`): A language model, or a `PeftModel` over one.
        input_ids, attention_mask (`torch.LongTensor` of shape `(U, T)`): Prompts, left padded.
        trie ([`TrieCSR`]): The paths that will be fed.
        any_process (`Callable`, *optional*): Tells whether a flag is set in any of the processes that must run the
            model together. By default there is one process.
        start (`torch.LongTensor` of shape `(N,)`, *optional*): Tokens that all paths begin with. Default: none.

    Raises:
        `ValueError`: The model cannot be searched; the message says why.
    """
    ability = check_searchable(model, trie, any_process)
    start = input_ids.new_zeros(0) if start is None else start
    if ability.tree is None and _windows_hold(base_model(model), input_ids.shape[1] + len(start) + trie.max_depth):
        return TreePrefixes(model, input_ids, attention_mask, start)
    if ability.rows is None:
        return RowPrefixes(model, input_ids, attention_mask, start)
    raise _refusal(model, ability.rows)


def open_tree(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, trie: TrieCSR, num_tokens: int
) -> TreePrefixes | None:
    """
    The cache in which everything that follows a prompt shares its keys and values; `None` where `model` cannot use it.

    Args:
        model, input_ids, attention_mask: As in [`open_prefixes`].
        trie ([`TrieCSR`]): Some tokens of the model, to try it out with.
        num_tokens (`int`): Most tokens that follow a prompt, up to one answer.
    """
    ability = cache_ability(model, trie)
    if ability.tree is not None or not _windows_hold(base_model(model), input_ids.shape[1] + num_tokens):
        return None
    return TreePrefixes(model, input_ids, attention_mask, input_ids.new_zeros(0))


def check_searchable(model: nn.Module, trie: TrieCSR, any_process: Callable[[bool], bool] = bool) -> Ability:
    """Refuse a model that no cache can drive; arguments and error are those of [`open_prefixes`]."""
    peft_config = getattr(model, "active_peft_config", None)
    if peft_config is not None and peft_config.is_prompt_learning:
        raise ValueError(
            f"A trie search cannot run on a {peft_config.peft_type} adapter, whose virtual tokens PEFT prepends to "
            "every forward pass. Use an adapter on the weights, such as LoRA."
        )
    ability = cache_ability(model, trie, any_process)
    if ability.tree is not None and ability.rows is not None:
        raise _refusal(model, ability.rows)
    return ability


def _refusal(model: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"A trie search cannot run on {type(base_model(model)).__name__}: {reason}. Models with state-space or "
        "recurrent layers are often of this kind. Use one whose layers are all attention."
    )


def cache_ability(model: nn.Module, trie: TrieCSR, any_process: Callable[[bool], bool] = bool) -> Ability:
    """What the probe of a model found, at the first call; see [`open_prefixes`] for the arguments."""
    base = base_model(model)
    key = (getattr(base.config, "_attn_implementation", None), base.dtype, torch.is_autocast_enabled(trie.device.type))
    with _PROBING:
        known = _KNOWN.setdefault(base, {})
        if any_process(key not in known):
            probe = _Probe(model, trie)
            ability = Ability(_tree_refusal(base) or probe.refusal(TreePrefixes), probe.refusal(RowPrefixes))
            if probe.is_finite:  # with NaN weights nothing can be told
                known[key] = ability
            return ability
        return known[key]


def _tree_refusal(base: Any) -> str | None:
    """
    Why beams may not share a cache row, as far as the configuration tells: the attention must take a ready-made mask
    and explicit positions, and each layer must hold keys and values by position.
    """
    config = base.config.get_text_config(decoder=True)
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"`attn_implementation` is {config._attn_implementation!r}"
    if is_encoder_decoder(base):
        if RelativePositions.install(base) is None:
            return "its decoder does not go by the distances of tokens"
    elif "position_ids" not in inspect.signature(base.forward).parameters:
        return "it takes no `position_ids`"
    if getattr(config, "alibi", False):
        return "its distances are those of slots, not of positions"
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in _layers(base)):
        return "it has layers without keys and values"
    return None


def _windows_hold(base: Any, num_tokens: int) -> bool:
    """Whether each layer looks back over `num_tokens`, so that a mask need not know of its window."""
    windows = (getattr(layer, "sliding_window", None) for layer in _layers(base))
    return all(window is None or window >= num_tokens for window in windows)


def _layers(base: Any) -> list[Any]:
    """Of its cache."""
    return DynamicCache(config=base.config).layers


class _Probe:
    """
    Two prompts, one of them padded, and three beams that branch and change places:

    - user 0 reads `abcdef`, and its beams write `b, h` and `ef, c` (one token at a time: `e, c`);
    - user 1 reads `cd`, and its beam writes `g, d`.
    """

    def __init__(self, model: nn.Module, trie: TrieCSR):
        self.model = model
        words = trie.tokens[:_WORDS].long()
        self.words = words[torch.arange(_WORDS, device=words.device) % len(words)]
        self.columns = words.unique()
        self.is_finite = True

    def refusal(self, kind: type[TreePrefixes] | type[RowPrefixes]) -> str | None:
        """What speaks against this kind of cache."""
        try:
            with torch.no_grad(), evaluation_mode(self.model):
                expected, found = self._whole(kind.feeds_chains), self._searched(kind)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
            return f"its cache cannot be used ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        self.is_finite = bool(expected.isfinite().all())
        base = base_model(self.model)
        exact = (
            base.dtype == torch.float32
            and not getattr(base, "is_quantized", False)  # 8-bit products round by the rows of a batch
            and not torch.is_autocast_enabled(self.words.device.type)
            and torch.get_float32_matmul_precision() == "highest"
        )
        gap, limit = (found - expected).abs().max(), _TOLERANCE if exact else _TOLERANCE_HALF
        if not self.is_finite or gap <= limit * expected.std() or not expected.numel() > 1:
            return None
        return f"with its cache a logit differs from that of a whole forward pass by {float(gap):.2g}"

    def _tokens(self, letters: str) -> list[int]:
        return [int(self.words["abcdefgh".index(letter)]) for letter in letters]

    def _whole(self, chains: bool) -> Tensor:
        """Logits that the search must find, `(8, C)`, from whole sequences, padded on the right with real tokens."""
        prompts, paths = ["abcdef", "abcdef", "cd"], ["bh", "efc" if chains else "ec", "gd"]
        # Path, and how much of it is read before each logit
        wanted = [(0, 0), (2, 0), (1, len(paths[1]) - 1), (0, 1), (2, 1), (0, 2), (1, len(paths[1])), (2, 2)]
        if is_encoder_decoder(self.model):
            first = decoder_start_token(base_model(self.model).config)
            outputs = [self._alone(prompt, first, path) for prompt, path in zip(prompts, paths, strict=True)]
            logits, starts = torch.cat(outputs), [1, 1, 1]
        else:
            rows = [prompt + path for prompt, path in zip(prompts, paths, strict=True)]
            input_ids = torch.tensor([self._tokens(row.ljust(9, "a")) for row in rows], device=self.words.device)
            mask = torch.ones_like(input_ids)
            logits = self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            starts = [len(prompt) for prompt in prompts]
        found = [logits[row, starts[row] + read - 1] for row, read in wanted]
        return torch.stack(found)[:, self.columns].float()

    def _alone(self, prompt: str, first: int, path: str) -> Tensor:
        """Logits of an encoder-decoder model that reads one prompt, `(1, 4, V)`."""
        decoder_ids = [first, *self._tokens(path.ljust(3, "a"))]
        return self.model(
            input_ids=torch.tensor([self._tokens(prompt)], device=self.words.device),
            decoder_input_ids=torch.tensor([decoder_ids], device=self.words.device),
            use_cache=False,
        ).logits

    def _searched(self, kind: type[TreePrefixes] | type[RowPrefixes]) -> Tensor:
        """The same logits from a cache."""

        def tensor(rows: list[list[int]] | list[int]) -> Tensor:
            return torch.tensor(rows, device=self.words.device)

        # An encoder may count positions from its first token
        short, mask = (
            ("cdaaaa", [1] * 2 + [0] * 4) if is_encoder_decoder(self.model) else ("aaaacd", [0] * 4 + [1] * 2)
        )
        prompts = tensor([self._tokens("abcdef"), self._tokens(short)])
        prefixes = kind(self.model, prompts, tensor([[1] * 6, mask]), prompts.new_zeros(0))
        chain = self._tokens("ef") if kind.feeds_chains else self._tokens("e")
        first = [chain, self._tokens("b"), self._tokens("g")]
        first = [tokens + [NO_TOKEN] * (len(chain) - len(tokens)) for tokens in first]
        last, users = [self._tokens(letter) for letter in "hcd"], tensor([0, 0, 1])
        logits = [
            prefixes.read_prompts(self.columns),
            prefixes.feed(Extension(tensor([0, 0, 1]), tensor(first), len(chain) + 1, 2), users, self.columns),
            prefixes.feed(Extension(tensor([1, 0, 2]), tensor(last), 2, 2), users, self.columns),
        ]
        return torch.cat(logits)
