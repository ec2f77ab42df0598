"""
The catalog's item paths as a compact, memory-mapped file.

The marisa-trie holds one thing: the number of each whole path, from which its items follow. It cannot list children
without walking a subtree, so the same paths are also kept as the arrays of [`TrieCSR`]. Both are made from one set of
paths and checked against each other at load.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import marisa_trie
import numpy as np
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from hf_rec.files import StandingFiles, replacing
from hf_rec.trie.csr import TrieCSR, leaf_spans


FORMAT_VERSION = 1
MARISA_FILE = "trie.marisa"
ARRAYS_FILE = "trie.safetensors"
INDEX_FILE = "trie.json"
CSR_ARRAYS = ("ptr", "tokens", "leaf_ptr", "leaf_rows")
MAX_TOKEN = 2**31 - 1
# A path's key is its tokens as big-endian 4-byte integers: unlike characters they have no surrogates and reach up to
# MAX_TOKEN, and `BinaryTrie`, unlike `BytesTrie`, does not stop at a zero byte.
TOKEN_BYTES = np.dtype(">u4")


class ItemTrie:
    """
    Token paths of a catalog's items: path to item rows, prefix to next tokens.

    Args:
        arrays (`dict[str, np.ndarray]`):
            int32 arrays: `ptr`, `tokens`, `leaf_ptr` and `leaf_rows` as in [`TrieCSR`], and `key_leaf`, the leaf id of
            each marisa key id.
        marisa (`marisa_trie.BinaryTrie`):
            Path keys.
    """

    def __init__(self, arrays: dict[str, np.ndarray], marisa: marisa_trie.BinaryTrie):
        self._arrays = arrays
        self._marisa = marisa
        self._csr: TrieCSR | None = None
        self.standing = StandingFiles(MARISA_FILE, ARRAYS_FILE, INDEX_FILE)  # for the next `save` to copy
        self.sha256 = _content_hash(arrays)

    @classmethod
    def build(cls, token_paths: Sequence[Sequence[int]], item_rows: Sequence[int] | None = None) -> "ItemTrie":
        """
        Build the trie of a catalog.

        Args:
            token_paths (`list[list[int]]`):
                Token path of each item, ending in the separator; ids between 0 and 2**31 - 1. Items may share a path,
                but no path may be the beginning of another one.
            item_rows (`list[int]`, *optional*):
                Catalog row of each path, each once; defaults to `0 .. len(token_paths) - 1`.

        Returns:
            [`ItemTrie`]: One leaf for each distinct path.
        """
        lengths = np.fromiter(map(len, token_paths), dtype=np.int64, count=len(token_paths))
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        try:
            tokens = np.fromiter(chain.from_iterable(token_paths), dtype=np.int64, count=offsets[-1])
        except OverflowError:
            at = next(i for i, path in enumerate(token_paths) if not all(0 <= token <= MAX_TOKEN for token in path))
            row = at if item_rows is None else item_rows[at]
            token = next(token for token in token_paths[at] if not 0 <= token <= MAX_TOKEN)
            raise _bad_token(row, token) from None
        return cls.from_flat(tokens, offsets, item_rows)

    @classmethod
    def from_flat(cls, tokens: np.ndarray, offsets: np.ndarray, item_rows: Sequence[int] | None = None) -> "ItemTrie":
        """
        Build the trie from paths that stand end to end, as [`~hf_rec.Prompt.item_paths`] gives them.

        Args:
            tokens (`np.ndarray` of shape `(T,)`): Token ids, path after path.
            offsets (`np.ndarray` of shape `(R + 1,)`): Where each path begins in `tokens`, and the end of the last.
            item_rows (`list[int]`, *optional*): As in [`~ItemTrie.build`].
        """
        flat, offsets, rows = _checked(tokens, offsets, item_rows)
        ptr, tokens, end_node = _build_levels(flat, offsets)
        _check_no_prefix(ptr, end_node, rows)
        _, first_leaf, _ = leaf_spans(ptr)
        leaf = first_leaf[end_node]
        order = np.lexsort((rows, leaf))
        leaf_ptr = np.concatenate([[0], np.cumsum(np.bincount(leaf))])
        marisa, key_leaf = _build_marisa(flat, offsets, order[leaf_ptr[:-1]])
        arrays = {"ptr": ptr, "tokens": tokens, "leaf_ptr": leaf_ptr, "leaf_rows": rows[order], "key_leaf": key_leaf}
        return cls({name: array.astype(np.int32) for name, array in arrays.items()}, marisa)

    def __len__(self) -> int:
        return len(self._arrays["leaf_ptr"]) - 1

    def __repr__(self) -> str:
        return f"ItemTrie(leaves={len(self)}, items={len(self._arrays['leaf_rows'])}, sha256={self.sha256[:12]!r})"

    def items(self, path: Sequence[int]) -> list[int]:
        """Catalog rows of a whole path, ascending; empty where no item has this path."""
        key_id = self._marisa.get(_key(path))
        if key_id is None:
            return []
        leaf = self._arrays["key_leaf"][key_id]
        start, stop = self._arrays["leaf_ptr"][leaf : leaf + 2]
        return self._arrays["leaf_rows"][start:stop].tolist()

    def valid_tokens(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow `prefix`, ascending; empty after a whole path and off the trie."""
        ptr, tokens, node = self._arrays["ptr"], self._arrays["tokens"], 0
        for token in prefix:
            start, stop = ptr[node : node + 2]
            edge = start + np.searchsorted(tokens[start:stop], token)
            if edge == stop or tokens[edge] != token:
                return []
            node = int(edge) + 1
        return tokens[ptr[node] : ptr[node + 1]].tolist()

    def csr(self) -> TrieCSR:
        """The same trie as tensors on the CPU, for training and search; made once."""
        if self._csr is None:
            self._csr = TrieCSR.from_arrays(*(self._arrays[name] for name in CSR_ARRAYS))
        return self._csr

    def verify(self) -> None:
        """Check every path of the arrays against the marisa-trie; slow for large catalogs, meant for tests."""
        ptr, tokens = self._arrays["ptr"].astype(np.int64), self._arrays["tokens"]
        _, first_leaf, depth = leaf_spans(ptr)
        parent = np.concatenate([[-1], np.repeat(np.arange(len(depth)), np.diff(ptr))])
        for node in np.flatnonzero(np.diff(ptr) == 0):
            leaf, path = first_leaf[node], np.empty(depth[node], dtype=np.int64)
            while node:
                path[depth[node] - 1], node = tokens[node - 1], parent[node]
            key_id = self._marisa.get(_key(path))
            if key_id is None or self._arrays["key_leaf"][key_id] != leaf:
                raise ValueError(f"Path {path.tolist()} is leaf {leaf} of the arrays, but not of {MARISA_FILE}.")

    def save(self, directory: str | os.PathLike) -> None:
        """Write `trie.marisa`, `trie.safetensors` and then `trie.json`, with their hashes; each file appears whole."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.standing.copy_to(directory):
            return
        contents = {MARISA_FILE: self._marisa.tobytes(), ARRAYS_FILE: save_safetensors(self._arrays)}
        index = {
            "format": FORMAT_VERSION,
            "leaves": len(self),
            "items": len(self._arrays["leaf_rows"]),
            "nodes": len(self._arrays["ptr"]) - 1,
            "sha256": self.sha256,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        }
        contents[INDEX_FILE] = (json.dumps(index, indent=2) + "\n").encode()
        for name, content in contents.items():
            with replacing(directory / name) as partial:
                partial.write_bytes(content)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "ItemTrie":
        """Load a saved trie, its marisa file memory-mapped; a file that is not as saved is a `ValueError`."""
        directory = Path(directory)
        try:
            index = json.loads((directory / INDEX_FILE).read_bytes())
            found, hashes = index["format"], {name: index["files"][name] for name in (MARISA_FILE, ARRAYS_FILE)}
            counts = (index["leaves"], index["items"], index["nodes"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise _damaged(directory / INDEX_FILE, f"no trie index in it ({error!r})") from error
        if found != FORMAT_VERSION:
            raise ValueError(
                f"{directory / INDEX_FILE} has format {found}, this version of hf_rec reads {FORMAT_VERSION}."
            )
        for name, expected in hashes.items():
            with open(directory / name, "rb") as file:  # before anything parses it: marisa trusts what it maps
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise _damaged(directory / name, f"its sha256 is not the one in {INDEX_FILE}")
        trie = cls(
            load_safetensors((directory / ARRAYS_FILE).read_bytes()),
            marisa_trie.BinaryTrie().mmap(str(directory / MARISA_FILE)),
        )
        arrays = trie._arrays
        if counts != (len(trie), len(arrays["leaf_rows"]), len(arrays["ptr"]) - 1) or trie.sha256 != index["sha256"]:
            raise _damaged(directory / INDEX_FILE, f"its counts or content hash are not those of {ARRAYS_FILE}")
        if not len(trie._marisa) == len(arrays["key_leaf"]) == len(trie):
            raise _damaged(directory / MARISA_FILE, f"it holds {len(trie._marisa)} paths, {ARRAYS_FILE} {len(trie)}")
        trie.standing.remember(directory)
        return trie


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is truncated, corrupted or from another trie: {reason}. Copy the folder again, or rebuild it with "
        "`ItemTrie.build(prompt.encode_items()).save(directory)`."
    )


def _content_hash(arrays: dict[str, np.ndarray]) -> str:
    """Hash of paths and rows, independent of how marisa numbers its keys."""
    digest = hashlib.sha256()
    for name in CSR_ARRAYS:
        digest.update(np.int64(len(arrays[name])).tobytes())
        digest.update(np.ascontiguousarray(arrays[name], dtype="<i4").data)
    return digest.hexdigest()


def _key(path: Sequence[int] | np.ndarray) -> bytes:
    """Key of one path; a token that no path can hold gives a key that is not in the trie."""
    tokens = np.asarray(path, dtype=np.int64)
    return tokens.astype(TOKEN_BYTES).tobytes() if ((tokens >= 0) & (tokens <= MAX_TOKEN)).all() else b""


def _checked(
    tokens: np.ndarray, offsets: np.ndarray, item_rows: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of all paths, offsets of the paths in them, and the item row of each path, all `int64`."""
    flat, offsets, num_paths = np.asarray(tokens, np.int64), np.asarray(offsets, np.int64), len(offsets) - 1
    if num_paths == 0:
        raise ValueError("`token_paths` is empty. A trie needs at least one item.")
    rows = np.arange(num_paths) if item_rows is None else np.asarray(item_rows, dtype=np.int64)
    if rows.shape != (num_paths,):
        raise ValueError(f"`item_rows` must hold one row per path, got {len(rows)} for {num_paths} paths.")
    distinct, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"`item_rows` holds row {distinct[counts > 1][0]} twice. An item has one path.")
    if distinct[0] < 0 or distinct[-1] > MAX_TOKEN:
        raise ValueError(f"`item_rows` must be between 0 and {MAX_TOKEN}, got {distinct[0]} .. {distinct[-1]}.")
    lengths = np.diff(offsets)
    if not lengths.all():
        raise ValueError(
            f"`token_paths` of item row {rows[lengths.argmin()]} is empty. End it with a separator token."
        )
    bad = np.flatnonzero((flat < 0) | (flat > MAX_TOKEN))
    if len(bad):
        row = rows[int(np.searchsorted(offsets, bad[0], side="right")) - 1]
        raise _bad_token(row, flat[bad[0]])
    return flat, offsets, rows


def _bad_token(row: int, token: int) -> ValueError:
    return ValueError(f"`token_paths` of item row {row} must hold token ids between 0 and {MAX_TOKEN}, got {token}.")


def _build_levels(flat: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`ptr` and `tokens` of the breadth-first trie, and the node at which each path ends; one sort per level."""
    lengths, vocab_size = np.diff(offsets), int(flat.max()) + 1
    active = np.arange(len(lengths))  # paths longer than `depth`, ordered by the node they have reached
    nodes, end_node = np.zeros_like(active), np.empty_like(active)
    parents, tokens, num_nodes, depth = [], [], 1, 0
    while len(active):
        keys = nodes * vocab_size + flat[offsets[active] + depth]
        order = np.argsort(keys, kind="stable")  # nearly sorted after the first levels, where this is fast
        active, keys = active[order], keys[order]
        is_new = np.concatenate([[True], keys[1:] != keys[:-1]])
        edges = keys[is_new]
        parents.append(edges // vocab_size)
        tokens.append(edges % vocab_size)
        nodes = num_nodes - 1 + np.cumsum(is_new)
        num_nodes, depth = num_nodes + len(edges), depth + 1
        ends = lengths[active] == depth
        end_node[active[ends]] = nodes[ends]
        active, nodes = active[~ends], nodes[~ends]
    num_children = np.bincount(np.concatenate(parents), minlength=num_nodes)
    return np.concatenate([[0], np.cumsum(num_children)]), np.concatenate(tokens), end_node


def _check_no_prefix(ptr: np.ndarray, end_node: np.ndarray, rows: np.ndarray) -> None:
    """Refuse a path that ends where another one goes on: the search could not tell whether to stop there."""
    inner = np.flatnonzero(ptr[end_node + 1] > ptr[end_node])
    if not len(inner):
        return
    node = end_node[inner[0]]
    while ptr[node + 1] > ptr[node]:
        node = ptr[node] + 1
    longer = rows[np.flatnonzero(end_node == node)[0]]
    raise ValueError(
        f"`token_paths` of item row {rows[inner[0]]} is the beginning of that of item row {longer}. End every path "
        "with a separator token that occurs nowhere else, as `Prompt.encode_items()` does."
    )


def _build_marisa(
    flat: np.ndarray, offsets: np.ndarray, leaf_paths: np.ndarray
) -> tuple[marisa_trie.BinaryTrie, np.ndarray]:
    """The marisa-trie of one path per leaf (in leaf order), and the leaf of each of its key ids."""
    data, bounds = flat.astype(TOKEN_BYTES).tobytes(), offsets * TOKEN_BYTES.itemsize
    spans = zip(bounds[leaf_paths].tolist(), bounds[leaf_paths + 1].tolist(), strict=True)
    keys = [data[start:stop] for start, stop in spans]
    # Two nested tries instead of three: a quarter faster to build and to ask, a third larger.
    marisa = marisa_trie.BinaryTrie(keys, num_tries=2)
    key_leaf = np.empty(len(keys), dtype=np.int64)
    key_leaf[np.fromiter(map(marisa.key_id, keys), dtype=np.int64, count=len(keys))] = np.arange(len(keys))
    return marisa, key_leaf
