"""The voting page's server in a thread of the tests, and plain requests to it."""

import asyncio
import http.client
import json
import threading
from pathlib import Path

from cli_tools import flat_picture

from tastemaker.preferences.booth import Booth
from tastemaker.preferences.votes import Votes
from tastemaker.preferences.voting import serve

TOKEN = "a-token-that-nobody-knows"
TAB, OTHER = "tab-number-1", "tab-number-2"
N = 6  # pictures of a set


def flat_pictures(folder: Path) -> Path:
    """Writes a set of N, each brighter than the one before; its folder."""
    for i in range(N):
        flat_picture(folder / f"{i}.png", 40 * i + 10, size=(40, 30))
    return folder


def make_booth(folder: Path, voter: str = "me", **how) -> Booth:
    """About all files of a folder; the votes lie beside it."""
    votes = Votes(folder.parent / "votes.sqlite", folder)
    return Booth(votes, voter, sorted(p for p in folder.rglob("*") if p.is_file()), seed=0, **how)


class Server:
    """`with Server(booth) as server: server.get("state")`."""

    def __init__(self, booth: Booth):
        self.booth, self._ready = booth, threading.Event()

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            await serve(self.booth, TOKEN, started=self._started)
        except asyncio.CancelledError:
            pass

    def _started(self, url: str, port: int) -> None:
        self.url, self.port = url, port
        self._ready.set()

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """(status, headers, body); the path is sent as it is, and so is a Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method, path, body, {k.replace("_", "-"): v for k, v in headers.items()}
            )
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path: str, **headers: str):
        return self.request("GET", f"/{TOKEN}/{path}", **headers)

    def state(self, tab: str = TAB) -> dict:
        status, _, body = self.get(f"state?tab={tab}&box=900")
        assert status == 200, body
        return json.loads(body)

    def post(self, what: str, tab: str = TAB, **body) -> tuple[int, dict]:
        sent = json.dumps({"tab": tab, "box": 900, **body}).encode()
        status, _, answer = self.request("POST", f"/{TOKEN}/{what}", sent)
        return status, json.loads(answer)
