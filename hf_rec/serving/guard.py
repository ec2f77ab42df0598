"""What stands between a client and the application: the token, the size and the pace of a body, and the counts."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from typing import Any

from hf_rec.serving.metrics import SECONDS, Metrics
from hf_rec.serving.settings import ServeSettings


_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'"),
]


class _Refused(Exception):
    def __init__(self, status: int, detail: str, headers: Iterable[tuple[bytes, bytes]] = ()):
        self.status, self.detail, self.headers = status, detail, [*headers]


class Guard:
    """
    ASGI middleware. A body is read whole before the application sees the request: it is refused as soon as it is too
    large, whatever its head says of its length, or takes too long.

    Args:
        app: The ASGI application.
        settings ([`ServeSettings`]): `max_body` and `read_timeout`.
        metrics ([`Metrics`]): Where requests are counted.
        paths (`Iterable[str]`): Paths of the application, the labels of the counts.
        open_paths (`Iterable[str]`): Paths that need no token.
        token (`str`, *optional*): The token of all other paths, sent as `Authorization: Bearer ...`.
    """

    def __init__(
        self,
        app: Any,
        settings: ServeSettings,
        metrics: Metrics,
        paths: Iterable[str],
        open_paths: Iterable[str],
        token: str | None = None,
    ):
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.open_paths = frozenset(open_paths)
        self._token = None if token is None else _digest(token.encode())

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_note(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        try:
            self._check_token(scope)
            body = await self._body(scope, receive)
            await self.app(scope, _replayed(body, receive), send_and_note)
        except _Refused as refused:
            await _refuse(refused, send_and_note)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.count("hf_rec_requests_total", path=path, status=str(status))
            self.metrics.observe("hf_rec_request_seconds", time.perf_counter() - started, SECONDS, path=path)

    def _check_token(self, scope: dict[str, Any]) -> None:
        if self._token is None or scope["path"] in self.open_paths:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        # Digests are equally long, so the time of the comparison tells nothing, not even the length of the token
        if scheme.lower() != b"bearer" or not hmac.compare_digest(_digest(token.strip()), self._token):
            raise _Refused(
                401,
                "Send the token of this server as `Authorization: Bearer TOKEN`.",
                [(b"www-authenticate", b"Bearer")],
            )

    async def _body(self, scope: dict[str, Any], receive: Any) -> bytes:
        most = self.settings.max_body
        too_large = _Refused(413, f"The body is larger than the {most} bytes that this server takes.", _CLOSE)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refused(400, "The client left before its request was whole.", _CLOSE)
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self.settings.read_timeout
            raise _Refused(408, f"The body did not arrive within {seconds:g} seconds.", _CLOSE) from None


_CLOSE = [(b"connection", b"close")]


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _replayed(body: bytes, receive: Any) -> Any:
    """A `receive` that gives a body that has been read, and then what the server has to say."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> dict[str, Any]:
        message: dict[str, Any] = messages.pop() if messages else await receive()
        return message

    return replay


async def _refuse(refused: _Refused, send: Any) -> None:
    content = json.dumps({"detail": refused.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": [*headers, *refused.headers]})
    await send({"type": "http.response.body", "body": content})
