"""The process that serves: connections that are bounded in time, an orderly stop, and reloading by signal."""

import asyncio
import signal
import threading
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hf_rec.serving.app import RecommenderServer


_STOP_SECONDS = 5  # beyond the longest that an answer may take


class PacedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose client does not finish the head of a request in time."""

    head_timeout = 10.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """The time runs from the first byte that is waited for until the head is whole, however many bytes trickle."""
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def make_server(server: RecommenderServer, host: str, port: int, log_level: str = "info") -> uvicorn.Server:
    """
    A server that is ready to `run()`. SIGINT and SIGTERM stop it after the requests that it has begun; SIGHUP makes it
    read its folders again.

    Args:
        server ([`RecommenderServer`]): What to serve.
        host (`str`), port (`int`): Where to listen; port 0 for one that the system picks.
        log_level (`str`, *optional*, defaults to `"info"`): As of uvicorn.
    """
    settings = server.settings
    protocol = type("Protocol", (PacedProtocol,), {"head_timeout": settings.read_timeout})
    config = uvicorn.Config(
        server.application(),
        host=host,
        port=port,
        http=protocol,
        ws="none",
        lifespan="on",
        log_level=log_level,
        access_log=False,  # histories are nobody's business; /metrics counts requests
        server_header=False,
        timeout_graceful_shutdown=int(settings.answer_timeout) + _STOP_SECONDS,
    )
    return uvicorn.Server(config)


def reload_on_hangup(server: RecommenderServer) -> None:
    """Let SIGHUP read all folders again, in a thread of its own; called from the main thread."""

    def hang_up(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=server.reload_all, name="hf_rec-reload", daemon=True).start()

    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, hang_up)
