"""A real ComfyUI server with this checkout as a node pack, for the tests marked `comfyui`.

    def test_it_scores(comfyui):                       # the session's server (comfyui_fixtures.py)
        comfyui.put(picture)                           # into ComfyUI's input folder
        mark = comfyui.mark()
        entry = comfyui.run({                          # the API format; raises ExecutionError
            "1": {"class_type": "LoadImage", "inputs": {"image": picture.name}},
            "2": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
            "3": {"class_type": "TastemakerScoreImages", "inputs": {"scorer": ["2", 0], "images": ["1", 0]}},
        })
        entry["outputs"]["3"]                          # what the node's `ui` said
        comfyui.executed(entry)                        # ids of the nodes that ran, not the cached ones
        comfyui.log(mark)                              # what the server logged since
        comfyui.restart()                              # same folders, a new process

One server serves the whole session, so a test leaves it idle, and names its files after itself.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from comfyui_source import ROOT, comfyui_path, copy_pack, frontend_path

STANDIN = ROOT / "tests" / "comfyui_standin"
PROBE = ROOT / "tests" / "comfyui_probe"  # nodes that make values and show them
INSTALL = "pip install --no-deps -r .ci/comfyui-requirements.txt"

# A dash and a dot, which no Python package may have in its name and a user's folder may.
PACK = "taste-maker.v1"

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class ExecutionError(RuntimeError):
    """A prompt that the server refused or that failed; `details` is what the server said."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


class ComfyUI:
    """A server in a process of its own, with folders of its own under `base`."""

    def __init__(self, base: Path, release: str = "newest", folder: str = PACK):
        self.base, self.release, self.folder = base, release, folder
        self.source = comfyui_path(release)
        self.frontend = frontend_path(release)
        self.process = None
        for name in ("input", "output", "temp", "user", "models", "custom_nodes"):
            (base / name).mkdir(parents=True, exist_ok=True)
        self.pack = copy_pack(ROOT, base / "custom_nodes" / folder)
        copy_pack(PROBE, base / "custom_nodes" / PROBE.name)

    # The process

    def start(self, timeout: float = 240) -> "ComfyUI":
        """Starts, waits until it answers; RuntimeError with the log if it or our pack does not."""
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(), cwd=self.base, env=self._environment(), stdout=log, stderr=log
            )
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                missing = f"\nIf a package is missing: {INSTALL}"
                raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}{missing}")
            time.sleep(0.2)
        if not self.nodes():
            self.stop()
            said = [line for line in self.log().splitlines() if self.folder in line]
            raise RuntimeError("ComfyUI did not load the pack:\n" + "\n".join(said))
        return self

    def start_log(self) -> str:
        """What the first start said, before any prompt."""
        return self.log().split("To see the GUI go to", 1)[0]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def restart(self) -> None:
        """A new process over the same folders; the port changes."""
        self.stop()
        self.start()

    def __enter__(self) -> "ComfyUI":
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    def _command(self) -> list[str]:
        arguments = {
            "--port": self.port,
            "--listen": "127.0.0.1",
            "--base-directory": self.base,
            "--database-url": "sqlite:///:memory:",
            "--front-end-root": self.frontend,
        }
        options = [str(part) for pair in arguments.items() for part in pair]
        flags = ["--cpu", "--disable-api-nodes"]
        return [sys.executable, "-u", str(self.source / "main.py"), *flags, *options]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(STANDIN), os.environ.get("PYTHONPATH")]))
        own = {
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",  # the cache is shared, and serves several Pythons
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.base / "hub"),
            "TASTEMAKER_HOME": str(self.base / "home"),
        }
        return {**os.environ, **own}

    def _answers(self) -> bool:
        try:
            return "system" in self.get("/system_stats")
        except OSError:
            return False

    # What it says

    @property
    def _log_file(self) -> Path:
        return self.base / "comfyui.log"

    def mark(self) -> int:
        """A place in the log, for `log(since)`."""
        return self._log_file.stat().st_size

    def log(self, since: int = 0) -> str:
        """What it has said since the mark, or ever."""
        text = self._log_file.read_bytes()[since:].decode("utf-8", "replace")
        return COLOURS.sub("", text)

    def nodes(self) -> dict[str, dict]:
        """Our nodes: id to description."""
        ours = f"custom_nodes.{self.folder}"
        return {n: i for n, i in self.object_info().items() if i["python_module"] == ours}

    def get(self, path: str):
        """What GET answers, parsed."""
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def object_info(self, node: str | None = None) -> dict:
        """Node id to its description, of one node or of all."""
        return self.get("/object_info" + (f"/{node}" if node else ""))

    # Prompts

    def run(self, prompt: dict, timeout: float = 120, check: bool = True, **extra) -> dict:
        """Queues an API prompt and waits for it."""
        return self.wait(self.queue(prompt, **extra), timeout, check)

    def queue(self, prompt: dict, **extra) -> str:
        """The prompt's id. `extra` goes beside the prompt, as in extra_data={"extra_pnginfo": {...}}.

        ExecutionError when the server refuses it.
        """
        # Older releases report the `ui` of cached nodes only to a prompt that has a client.
        body = {"prompt": prompt, "client_id": "tests", **extra}
        try:
            return json.loads(self.post("/prompt", body))["prompt_id"]
        except urllib.error.HTTPError as error:
            details = json.loads(error.read())
            raise ExecutionError(_refusal(details), details) from None

    def wait(self, prompt_id: str, timeout: float = 120, check: bool = True) -> dict:
        """The prompt's entry in the history; with `check`, ExecutionError when it failed.

        Without it, `failure(entry)` is the error's description.
        """
        deadline = time.monotonic() + timeout
        while not (found := self.get(f"/history/{prompt_id}")):
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI died:\n{self.log()[-4000:]}")
            if time.monotonic() > deadline:
                self.interrupt()
                raise TimeoutError(f"not done in {timeout} s:\n{self.log()[-2000:]}")
            time.sleep(0.05)
        entry = found[prompt_id]
        if check and entry["status"]["status_str"] != "success":
            details = failure(entry)
            raise ExecutionError(_failed(details), details)
        return entry

    def executed(self, entry: dict) -> set[str]:
        """Ids of the nodes that a prompt ran; what came from the cache is not among them."""
        cached = {node for m in _messages(entry, "execution_cached") for node in m["nodes"]}
        return set(entry["prompt"][2]) - cached

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def free(self, unload_models: bool = True, free_memory: bool = True) -> None:
        """Asks for models and cached results to be dropped, which an idle server does at once."""
        self.post("/free", {"unload_models": unload_models, "free_memory": free_memory})
        # Its worker takes the flags as it wakes, but after a prompt that is queued too soon.
        time.sleep(0.5)

    def idle(self) -> bool:
        queue = self.get("/queue")
        return not (queue["queue_running"] or queue["queue_pending"])

    def wait_until_running(self, prompt_id: str, timeout: float = 60) -> None:
        """Until the prompt has left the queue and executes."""
        deadline = time.monotonic() + timeout
        while prompt_id not in [item[1] for item in self.get("/queue")["queue_running"]]:
            if time.monotonic() > deadline or self.get(f"/history/{prompt_id}"):
                raise TimeoutError(f"never seen running:\n{self.log()[-2000:]}")
            time.sleep(0.02)

    # Files

    def put(self, *files: Path, subfolder: str = "") -> list[str]:
        """Copies files into ComfyUI's input folder; the names that LoadImage knows them by."""
        folder = self.base / "input" / subfolder
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, folder / file.name)
        return [(Path(subfolder) / file.name).as_posix() for file in files]

    def upload(self, file: Path) -> str:
        """Sends a picture the way the web page does; the name the server gave it."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{file.name}"'
        )
        body = f"{head}\r\n\r\n".encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(self.url + "/upload/image", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["name"]

    @property
    def output(self) -> Path:
        return self.base / "output"

    def files(self, entry: dict, node: str, key: str = "images") -> list[Path]:
        """The files that a node's `ui` names: previews, saved pictures."""
        named = entry["outputs"][node][key]
        return [self.base / f["type"] / f["subfolder"] / f["filename"] for f in named]


def failure(entry: dict) -> dict:
    """Why a prompt failed: node_id, node_type, exception_type, exception_message, traceback.

    An interrupted one has node_id and node_type only; {} for one that succeeded.
    """
    found = [m for kind in ("error", "interrupted") for m in _messages(entry, f"execution_{kind}")]
    return found[0] if found else {}


def interrupted(entry: dict) -> bool:
    return bool(_messages(entry, "execution_interrupted"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _messages(entry: dict, kind: str) -> list[dict]:
    return [message for name, message in entry["status"]["messages"] if name == kind]


def _failed(details: dict) -> str:
    where = f"{details.get('node_type')} (node {details.get('node_id')})"
    if "exception_message" not in details:
        return f"{where}: interrupted"
    trace = "".join(details.get("traceback", []))
    return f"{where}: {details['exception_message'].strip()}\n{trace}"


def _refusal(details: dict) -> str:
    lines = [f"{details['error']['message']} {details['error'].get('details', '')}".strip()]
    for node, found in (details.get("node_errors") or {}).items():
        for error in found["errors"]:
            lines.append(
                f"{found['class_type']} (node {node}): {error['message']}: {error['details']}"
            )
    return "\n".join(lines)
