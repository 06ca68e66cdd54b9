"""The voting page's server: on this computer only, behind a token, one folder's pictures and no more.

Who can open the page: a program that reaches this computer's own loopback interface and knows the
token in the address. A foreign web page reaches the first through the user's browser, but not the
second; and the check of `Host` keeps out names that were rebound to this address.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..scorers.messages import needs
from .booth import Booth
from .showing import box_for
from .votes import AlreadyAnswered

if TYPE_CHECKING:
    from aiohttp import web

HOST = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "[::1]")  # what a browser on this computer may call us
PAGE = Path(__file__).with_name("vote.html")
TAB = re.compile(r"[\w-]{8,64}", re.ASCII)
LARGEST_BODY = 4096


def aiohttp_web():
    """`aiohttp.web`. ImportError that names the command which installs it."""
    try:
        from aiohttp import web
    except ImportError:
        raise needs("the voting page needs aiohttp", "aiohttp", "vote") from None
    return web


def make_app(booth: Booth, token: str) -> web.Application:
    """The server of one booth, below /TOKEN/."""
    web = aiohttp_web()
    app = web.Application(middlewares=[_guard(web, token)], client_max_size=LARGEST_BODY)
    handlers = Handlers(web, booth)
    app.router.add_get("/{token}/", handlers.page)
    app.router.add_get("/{token}/state", handlers.state)
    app.router.add_get("/{token}/picture/{id}", handlers.picture)
    app.router.add_post("/{token}/vote", handlers.vote)
    app.router.add_post("/{token}/undo", handlers.undo)
    return app


async def serve(
    booth: Booth, token: str, port: int = 0, started: Callable[[str, int], None] = print
) -> None:
    """Serves until it is cancelled. `started(url, port)` is called when the page can be opened.

    OSError if the port is taken; with port 0 any free one is used.
    """
    web = aiohttp_web()
    runner = web.AppRunner(make_app(booth, token), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, port)
        await site.start()
        port = runner.addresses[0][1]
        started(f"http://{HOST}:{port}/{token}/", port)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


class Handlers:
    """Requests to the booth, whose work is done by threads: no vote waits for a picture."""

    def __init__(self, web, booth: Booth):
        self.web, self.booth = web, booth

    async def page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        text = PAGE.read_text(encoding="utf-8").replace("{{ nonce }}", nonce)
        own = f"'nonce-{nonce}'"
        policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src {own}; "
            f"script-src {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy}
        return self.web.Response(text=text, content_type="text/html", headers=headers)

    async def state(self, request: web.Request) -> web.Response:
        tab, box = _tab(request.query.get("tab")), _box(request.query.get("box"))
        return await self._state(tab, box, ahead=2)

    async def vote(self, request: web.Request) -> web.Response:
        body = await _body(request)
        tab, box = _tab(body.get("tab")), _box(body.get("box"))
        key, answer = _text(body, "key"), _text(body, "answer")
        try:
            await asyncio.to_thread(self.booth.vote, key, answer)
        except AlreadyAnswered as error:
            return await self._state(tab, box, note=str(error))
        return await self._state(tab, box)

    async def undo(self, request: web.Request) -> web.Response:
        body = await _body(request)
        tab, box = _tab(body.get("tab")), _box(body.get("box"))
        await asyncio.to_thread(self.booth.undo, _text(body, "key"), tab)
        return await self._state(tab, box)

    async def picture(self, request: web.Request) -> web.Response:
        box = _box(request.query["box"]) if "box" in request.query else None
        shown = await asyncio.to_thread(self.booth.picture, request.match_info["id"], box)
        # The address names the contents, which never change.
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        return self.web.Response(body=shown.data, content_type=shown.kind, headers=headers)

    async def _state(self, tab: str, box: int, ahead: int = 0, note: str = "") -> web.Response:
        """What was prepared before is told at once; only `ahead` waits for more to be prepared."""
        state = await asyncio.to_thread(self.booth.state, tab, box, ahead)
        return self.web.json_response(state | {"note": note})


def _guard(web, token: str):
    """Refuses what does not come from our own page; errors become one line of JSON."""

    @web.middleware
    async def guard(request: web.Request, handler) -> web.StreamResponse:
        try:
            if not _may_enter(request, token):
                response = _refused(web, 403, "open the address that `tastemaker vote` printed")
            else:
                response = await handler(request)
        except web.HTTPException as error:
            response = _refused(web, error.status, error.reason)
        except KeyError:
            response = _refused(web, 404, "not known here")
        except ValueError as error:
            response = _refused(web, 400, str(error))
        except OSError as error:  # the disk is full, a file is gone
            response = _refused(web, 503, str(error))
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response

    return guard


def _may_enter(request: web.Request, token: str) -> bool:
    named = re.sub(r":\d+$", "", request.headers.get("Host", "")).lower()
    origin = request.headers.get("Origin")
    at_home = origin is None or urlsplit(origin).netloc == request.headers.get("Host")
    given = request.path.split("/")[1]
    known = hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
    return named in NAMES and at_home and known


def _refused(web, status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


async def _body(request: web.Request) -> dict:
    try:
        body = json.loads(await request.text())
    except (UnicodeDecodeError, RecursionError):
        raise ValueError("the request is not JSON") from None
    if not isinstance(body, dict):
        raise ValueError("the request is not a JSON object")
    return body


def _text(body: dict, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise ValueError(f"the request has no {name}")
    return value


def _tab(value) -> str:
    if not isinstance(value, str) or not TAB.fullmatch(value):
        raise ValueError("the request names no tab")
    return value


def _box(value) -> int:
    try:
        return box_for(int(value))
    except (TypeError, ValueError):
        raise ValueError(f"box must be a number of pixels, not {value!r}") from None
