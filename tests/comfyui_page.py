"""ComfyUI's real web page in a headless browser, for the tests marked `comfyui`.

    def test_a_workflow_opens_and_runs(comfyui_page):   # a page of the session's server (comfyui_fixtures.py)
        page = comfyui_page
        page.load(ROOT / "workflows" / "score.json")     # a file in the UI format, or its parsed JSON
        assert page.complaints() == []                   # missing nodes and models, errors, dialogs
        assert page.overlaps() == [] and page.cut_off() == []
        entry = page.run()                               # presses Run and waits; the history's entry
        page.screenshot(tmp_path / "score.png")          # all of the graph, every node at full size

`page.prompt(workflow)` turns the UI format into the API format, as the page does when it queues:
the conversion that server tests need in order to run the files in workflows/.
"""

import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from comfyui_server import ComfyUI
from PIL import Image

# What a first visit asks about, and what would cover the graph.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ConfirmDelete": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    # Each node would carry the name of the tests' folder.
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
}
# Errors that the page makes by itself.
KNOWN = (
    "favicon.ico",
    "user.css",
    "/userdata",
    "/templates/",
    "Error loading core workflow templates",
    "Error loading fuse options",
    "graph accessed before initialization",
    "missingModelDownload",
)
QUESTIONS = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
BAR = (80, 130)  # the page's own bars cover this much of the left and the top


def open_browser(forget: bool = True):
    """Headless Chromium; fails the test with the command that installs what is missing.

    `forget` empties what each page keeps for its tab, whenever it is opened or opened again.
    """
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        pytest.fail(f"no {' and '.join(missing)}: apt-get install -y chromium chromium-driver")
    try:
        from selenium import webdriver
    except ImportError:
        pytest.fail('no selenium: pip install "tastemaker[test]"')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    sandbox = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage")
    for argument in (*sandbox, "--window-size=1600,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    driver.set_script_timeout(60)
    # A page that is opened again comes as a new visitor: under the old name, the server takes it for
    # gone when it notices that the one before it is, and tells it nothing of what its prompts do.
    fresh = {"source": "window.name = ''; try { sessionStorage.clear() } catch {}"}
    if forget:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", fresh)
    return driver


class Page:
    """What a user sees and does in the page of a server."""

    def __init__(self, browser, server: ComfyUI):
        self.browser, self.server = browser, server

    def open(self, query: str = "") -> "Page":
        """Opens the page afresh, with an empty graph (comfyui_probe/web); or with what `query` asks for."""
        self.server.post("/settings", SETTINGS)
        self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})  # of `_fit`
        self.browser.get("about:blank")
        self.console()  # of the page before
        self.browser.get(f"{self.server.url}/{query}")
        ready = "return !!(window.app?.vueAppReady && app.canvas && window.opened)"
        self.until(ready, "the page did not start")
        self.until("return !!LiteGraph.registered_node_types.LoadImage", "no nodes in the page")
        if query:
            self.until("return app.graph.nodes.length > 0", f"{query} opened nothing")
        self.calm()
        return self

    def js(self, script: str, *arguments) -> Any:
        return self.browser.execute_script(script, *arguments)

    def ask(self, function: str, *arguments) -> Any:
        """What a function of comfyui_page.js answers."""
        return self.js(f"{QUESTIONS}\nreturn {function}(...arguments)", *arguments)

    def wait_js(self, script: str, *arguments) -> Any:
        """The value of an async function's body; RuntimeError with the page's stack."""
        wrapped = f"""
            const done = arguments[arguments.length - 1];
            (async function () {{ {script} }}).apply(null, arguments)
                .then(value => done([value]), error => done(String(error.stack || error)));
        """
        found = self.browser.execute_async_script(wrapped, *arguments)
        if isinstance(found, str):
            raise RuntimeError(found)
        return found[0]

    def until(self, script: str, otherwise: str, timeout: float = 120) -> Any:
        """Waits until the script returns something true, and returns it."""
        deadline = time.monotonic() + timeout
        while not (found := self.js(script)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise}:\n{self.console()[-10:]}")
            time.sleep(0.1)
        return found

    def calm(self) -> None:
        """Lets the page finish what it does after a change: layout, then its own checks."""
        frame = (
            "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
        )
        self.wait_js(frame + "await new Promise(done => setTimeout(done, 300));" + frame)

    def setting(self, name: str, value) -> None:
        """Changes one of the page's settings, as in setting("Comfy.VueNodes.Enabled", True)."""
        self.wait_js("await app.extensionManager.setting.set(...arguments)", name, value)
        self.calm()

    # Workflows

    def load(self, workflow: dict | Path) -> None:
        """Opens a workflow in the UI format, as if its file were dropped on the page."""
        if isinstance(workflow, Path):
            workflow = json.loads(workflow.read_text(encoding="utf-8"))
        self.wait_js("await app.loadGraphData(arguments[0])", workflow)
        self.calm()

    def load_template(self, name: str) -> None:
        """Opens one of the pack's workflows by its name, by way of the template browser's link."""
        self.open(f"?template={name}&source={self.server.folder}")
        self.calm()

    def prompt(self, workflow: dict | Path | None = None) -> dict:
        """The API format of a workflow, by default of the one that is open."""
        if workflow is not None:
            self.load(workflow)
        return self.wait_js("return (await app.graphToPrompt()).output")

    def serialize(self) -> dict:
        """The open workflow in the UI format, as Save writes it."""
        return self.js("return app.graph.serialize()")

    def queue(self) -> str:
        """Presses Run; the id of the prompt. AssertionError with what the page says instead."""
        known = self._prompts()
        self.browser.find_element("css selector", "[data-testid=queue-button]").click()
        deadline = time.monotonic() + 15
        while not (new := self._prompts() - known):
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing was queued: {self.complaints()}")
            time.sleep(0.05)
        (prompt_id,) = new
        return prompt_id

    def run(self, workflow: dict | Path | None = None, timeout: float = 120) -> dict:
        """Loads, presses Run, waits; the history's entry. ExecutionError when it failed."""
        if workflow is not None:
            self.load(workflow)
        entry = self.server.wait(self.queue(), timeout)
        self.calm()
        return entry

    def _prompts(self) -> set[str]:
        queue = self.server.get("/queue")
        waiting = [item[1] for item in queue["queue_running"] + queue["queue_pending"]]
        return {*self.server.get("/history"), *waiting}

    # What is wrong

    def complaints(self) -> list[str]:
        """Texts of all dialogs, toasts and error panels in sight: missing nodes, models, files."""
        return self.ask("complaints")

    def console(self) -> list[str]:
        """Errors in the console since it was last asked, without those of ComfyUI itself alone.

        A fresh server answers 404 for files that no user has written yet, the tests run without
        the package of ComfyUI's own templates, and the graph that it opens first has no models.
        """
        severe = [e["message"] for e in self.browser.get_log("browser") if e["level"] == "SEVERE"]
        return [m for m in severe if not any(known in m for known in KNOWN)]

    # What it looks like

    def nodes(self) -> list[dict]:
        """id, type, title, and x, y, w, h in graph pixels with the title bar, of every node."""
        return self.ask("nodes")

    def overlaps(self, gap: float = 0) -> list[tuple[str, str]]:
        """Titles of nodes that lie on each other, or closer than `gap`."""
        nodes = self.nodes()
        pairs = [(a, b) for i, a in enumerate(nodes) for b in nodes[:i]]
        return [(a["title"], b["title"]) for a, b in pairs if _touch(a, b, gap)]

    def cut_off(self) -> list[str]:
        """What cannot be read whole: "node: text..." for texts, "node: too small" for nodes.

        Texts are those that the canvas really draws; they are cut with an ellipsis. In text boxes,
        whatever has to be scrolled counts.
        """
        self._fit()
        return self.ask("cutOff")

    def previews(self, node_id: str | int) -> list[tuple[int, int]]:
        """Width and height of every picture that a node in sight shows, once they are loaded.

        AssertionError with what the page knows of the node when none come.
        """
        script = """
            const node = app.graph.getNodeById(arguments[0]);
            for (let tries = 0; tries < 150 && !node.imgs?.length; tries++)
                await new Promise(done => setTimeout(done, 200));
            return (node.imgs || []).map(i => [i.naturalWidth, i.naturalHeight]);
        """
        found = self.wait_js(script, int(node_id))
        assert found, f"no picture: {self.ask('pictureless', int(node_id))}\n{self.console()}"
        return [tuple(size) for size in found]

    def help(self, node_type: str) -> str:
        """The text of the help panel for a node of that type, added alone to an empty graph."""
        self.ask("alone", node_type)
        self.calm()
        self.browser.find_element("css selector", "[data-testid=info-button]").click()
        shown = "return document.querySelector('.node-help-content')?.innerText.trim()"
        self.until(shown, "no help")
        self.calm()
        return self.js(shown)

    def screenshot(self, path: Path, scale: float = 1.0, whole_page: bool = False) -> Path:
        """The graph at `scale`, cropped to its nodes; or the page as it is."""
        if whole_page:
            self.browser.save_screenshot(str(path))
            return path
        x, y, w, h = self._fit(scale)
        picture = Image.open(io.BytesIO(self.browser.get_screenshot_as_png()))
        picture.crop((x, y, x + w, y + h)).save(path)
        self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.calm()
        return path

    def _fit(self, scale: float = 1.0, margin: int = 20) -> tuple[int, int, int, int]:
        """A window in which every node is in sight; the graph's x, y, w, h in it."""
        boxes = [(n["x"], n["y"], n["x"] + n["w"], n["y"] + n["h"]) for n in self.nodes()]
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        w, h = (round(length * scale) + 2 * margin for length in (right - left, bottom - top))
        size = {"width": w + 2 * BAR[0], "height": h + 2 * BAR[1]}
        metrics = {**size, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.calm()
        self.ask("place", scale, BAR[0] + margin - left * scale, BAR[1] + margin - top * scale)
        self.calm()
        return *BAR, w, h


def _touch(a: dict, b: dict, gap: float) -> bool:
    return all(a[p] < b[p] + b[s] + gap and b[p] < a[p] + a[s] + gap for p, s in ("xw", "yh"))
