"""The limits of a server, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeSettings:
    """
    What one client may ask for, and how requests become batches.

    Args:
        max_batch (`int`, *optional*, defaults to `32`): Requests that a model answers at a time.
        batch_wait (`float`, *optional*, defaults to `0.002`): Seconds without a new request
            after which a model that is free begins; at most ten times that passes.
        max_waiting (`int`, *optional*, defaults to `1024`): Requests that may wait for a model; the next one gets 503.
        max_k (`int`, *optional*, defaults to `100`): Longest list.
        max_history (`int`, *optional*, defaults to `1000`): Most events of a history, and most candidates to score.
        max_body (`int`, *optional*, defaults to `1048576`): Most bytes of a request.
        read_timeout (`float`, *optional*, defaults to `10.0`): Seconds that a client may take to send the head of a
            request, and its body.
        answer_timeout (`float`, *optional*, defaults to `30.0`): Seconds that an answer may take, then it is 504.
        num_beams (`int`, *optional*): Width of the search, raised to `k` where that is more. By default twice `k`,
            and no fewer than 20.
    """

    max_batch: int = 32
    batch_wait: float = 0.002
    max_waiting: int = 1024
    max_k: int = 100
    max_history: int = 1000
    max_body: int = 2**20
    read_timeout: float = 10.0
    answer_timeout: float = 30.0
    num_beams: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "max_k", "max_history", "max_body"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("read_timeout", "answer_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be more than 0 seconds, got {getattr(self, name)}.")
        if not self.batch_wait >= 0:
            raise ValueError(f"`batch_wait` must be at least 0 seconds, got {self.batch_wait}.")
