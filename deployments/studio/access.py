"""Access control of the studio: this machine's names as the host, its own pages as the origin, and a password."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.hosts import is_own_host
from tasks.studio_link import HEALTH

LOGIN = "/login"
STATIC = "/static/"
_OPEN = (LOGIN, HEALTH)
COOKIE = "musicgen_studio"
_COOKIE_SECONDS = 30 * 24 * 3600
_WRONG_PASSWORD_SECONDS = 1.0
MOST_GUESSES = 20
"""Passwords that wait to be compared; more are refused."""
_SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-cache",
}
"""Of every response: scripts and styles are files of the studio, and no other site reads or frames its pages"""


class Sessions:
    """The password, and signed cookies of those who gave it. The key lives as long as the process.

    Args:
        password: None if none is asked for.
    """

    def __init__(self, password: str | None) -> None:
        self._password, self._key = password, secrets.token_bytes(32)
        self._one_at_a_time, self._guesses = asyncio.Lock(), 0

    @property
    def has_password(self) -> bool:
        return self._password is not None

    @property
    def is_busy(self) -> bool:
        """Whether `MOST_GUESSES` passwords wait to be compared."""
        return self._guesses >= MOST_GUESSES

    async def is_right(self, password: str) -> bool:
        """Compare a password in constant time. A wrong one takes a second, in which the next ones wait."""
        given, expected = (_digest(text.encode(errors="replace")) for text in (password, self._password or ""))
        self._guesses += 1
        try:
            async with self._one_at_a_time:
                is_equal = hmac.compare_digest(given, expected)
                if not is_equal:
                    await asyncio.sleep(_WRONG_PASSWORD_SECONDS)
                return is_equal
        finally:
            self._guesses -= 1

    def cookie(self, is_secure: bool) -> str:
        """Return the header `set-cookie` of a new session."""
        expires = str(int(time.time()) + _COOKIE_SECONDS)
        flags = f"Path=/; Max-Age={_COOKIE_SECONDS}; HttpOnly; SameSite=Strict{'; Secure' if is_secure else ''}"
        return f"{COOKIE}={expires}.{self._signature(expires)}; {flags}"

    def knows(self, cookies: str) -> bool:
        """Return whether a header `cookie` has a session that is valid."""
        if self._password is None:
            return True
        expires, _, signature = cookie_parser(cookies).get(COOKIE, "").partition(".")
        is_signed = hmac.compare_digest(signature.encode(), self._signature(expires).encode())
        return is_signed and expires.isdecimal() and int(expires) > time.time()

    def _signature(self, expires: str) -> str:
        return hmac.new(self._key, expires.encode(), hashlib.sha256).hexdigest()


def _digest(password: bytes) -> bytes:
    return hashlib.sha256(password).digest()  # of one length, so that the comparison doesn't show the password's


class Guard:
    """The ASGI application behind its checks, which come before anything is read.

    Args:
        names: the host names that requests may have.
        sessions: who has given the password.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], sessions: Sessions) -> None:
        self._app, self._names, self._sessions = app, names, sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope, Headers(scope=scope))

        async def send_with_headers(sent: Message) -> None:
            if sent["type"] == "http.response.start":
                headers = MutableHeaders(scope=sent)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(sent)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        host, path = headers.get("host", ""), scope["path"]
        if not is_own_host(host, self._names):  # another site's name that leads here (DNS rebinding)
            return PlainTextResponse(
                "not a name of this machine: MUSICGEN_STUDIO_URL gives it one", HTTPStatus.MISDIRECTED_REQUEST
            )
        if scope["method"] not in _SAFE_METHODS and not _is_of_own_page(headers, host):
            return PlainTextResponse("sent by the page of another site", HTTPStatus.FORBIDDEN)
        if path in _OPEN or path.startswith(STATIC) or self._sessions.knows(headers.get("cookie", "")):
            return None
        if path == "/":
            return RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER)
        return PlainTextResponse("a password is needed", HTTPStatus.UNAUTHORIZED)


def _is_of_own_page(headers: Headers, host: str) -> bool:
    """Return whether a request comes from the studio's page, or from no browser, which would send its origin."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or (urlsplit(origin).netloc == host and host != "")
