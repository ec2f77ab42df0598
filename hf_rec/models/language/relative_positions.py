"""
Distances between given positions, in the self-attention of a T5-like decoder.

T5 knows positions by a bias that depends on how far apart two tokens stand, and it takes their places in the cache for
their positions. In a cache that many beams share, they are not.

Shapes: B rows · Q queries · K keys · H heads.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn


_ATTRIBUTE = "_hf_rec_relative_positions"
# Positions belong to the thread that runs the model, so that calls in other threads do not see them.
_POSITIONS: "ContextVar[Mapping[RelativePositions, tuple[Tensor, Tensor]]]" = ContextVar(
    "_POSITIONS", default=MappingProxyType({})
)
_INSTALLING = Lock()


class RelativePositions:
    """
    Switch on a decoder whose self-attention has relative position biases. Outside [`~RelativePositions.given`] the
    decoder behaves as before.
    """

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers
        for layer in layers:
            layer.register_forward_pre_hook(self._give_bias, with_kwargs=True)

    @classmethod
    def install(cls, model: Any) -> "RelativePositions | None":
        """
        Get the switch of a model, made at the first call.

        Args:
            model ([`~transformers.PreTrainedModel`]): An encoder-decoder model.

        Returns:
            [`RelativePositions`] or `None`: `None` where the decoder has no such biases.
        """
        decoder = model.get_decoder()
        layers = [module for module in decoder.modules() if getattr(module, "has_relative_attention_bias", False)]
        if not layers or not all(hasattr(layer, "_relative_position_bucket") for layer in layers):
            return None
        with _INSTALLING:
            present = decoder.__dict__.get(_ATTRIBUTE)
            if present is None or present.layers != layers:
                present = cls(layers)
                object.__setattr__(decoder, _ATTRIBUTE, present)
        return present

    @contextmanager
    def given(self, queries: Tensor, keys: Tensor) -> Iterator[None]:
        """
        Within this context the decoder goes by these positions; for calls in the same thread.

        Args:
            queries (`torch.LongTensor` of shape `(B, Q)`): Positions of the tokens that are fed.
            keys (`torch.LongTensor` of shape `(B, K)`): Positions of all that is in the cache after them.
        """
        token = _POSITIONS.set({**_POSITIONS.get(), self: (queries, keys)})
        try:
            yield
        finally:
            _POSITIONS.reset(token)

    def _give_bias(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        positions = _POSITIONS.get().get(self)
        if positions is None:
            return None
        queries, keys = positions
        buckets = layer._relative_position_bucket(
            keys[:, None, :] - queries[:, :, None],
            bidirectional=False,
            num_buckets=layer.relative_attention_num_buckets,
            max_distance=layer.relative_attention_max_distance,
        )
        return args, kwargs | {"position_bias": layer.relative_attention_bias(buckets).permute(0, 3, 1, 2)}
