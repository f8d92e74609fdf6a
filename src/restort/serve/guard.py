"""What is refused before anything else: plain ASGI in front of the application, so that refusals cost little."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = ("/healthz", "/readyz")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]


class Guard:
    """Checks the host, the origin, the key, the number of bytes and the queue.

    keys        of the API; empty for none
    max_bytes   of a body
    full        whether the queue takes nothing more
    local       bound to this computer only: other names of the host are refused (DNS rebinding)
    count       called with method, path and status code of every answer
    """

    def __init__(
        self,
        app: App,
        *,
        keys: Sequence[str],
        max_bytes: int,
        full: Callable[[], bool],
        local: bool,
        count: Callable[[str, str, int], None],
    ) -> None:
        self.app, self.max_bytes, self.full, self.local, self.count = app, max_bytes, full, local, count
        self._keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
                self.count(method, _pattern(path), message["status"])
            await send(message)

        headers = {name.lower(): value for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(sending, *refused)
            return
        received = 0

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, receiving, sending)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and sentence of a refusal; None where the request may go on. Notes whose request it is."""
        method, path = scope["method"], scope["path"]
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        if self.local and name not in _LOCAL:
            return (
                403,
                f"this server answers only to {', '.join(_LOCAL)}; start it with --host to serve others",
            )
        if path in _OPEN:
            return None
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin not in ("", f"http://{host}", f"https://{host}"):
            return (
                403,
                "requests from other web sites are refused; use the server's own page, or no Origin header",
            )
        client = scope.get("client")
        scope.setdefault("state", {})["key"] = str(client[0]) if client else ""
        if self._keys and (path.startswith("/v1/") or path == "/metrics"):
            given = headers.get(b"x-api-key", b"").decode("latin-1")
            bearer = headers.get(b"authorization", b"").decode("latin-1")
            if bearer.lower().startswith("bearer "):
                given = bearer[7:].strip()
            digest = hashlib.sha256(given.encode()).digest()
            matches = [hmac.compare_digest(digest, key) for key in self._keys]  # all of them: constant time
            if not any(matches):
                return 401, "the API key is missing or wrong; send it as the header X-API-Key"
            scope["state"]["key"] = digest.hex()[:16]
        if method == "POST":
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or int(length) > self.max_bytes:
                return 413, self._too_large()
            if path in ("/v1/restore", "/v1/jobs") and self.full():
                return 503, "the queue is full; try again later"
        return None

    def _too_large(self) -> str:
        return f"the request is larger than {self.max_bytes / 1e6:.0f} MB; send a smaller file"


def _pattern(path: str) -> str:
    """The path without the ids of jobs, so that metrics have few labels."""
    parts = path.split("/")
    if parts[1:3] == ["v1", "jobs"] and len(parts) > 3:
        parts[3] = "{id}"
        return "/".join(parts[:6])
    known = (
        "/",
        "/v1/restore",
        "/v1/jobs",
        "/v1/models",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/docs",
    )
    return path if path in known else "other"


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", b"2"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
