"""The report in a real browser: picks by mouse and keyboard, the threshold, undo, lists, zoom.

Needs Chromium, its driver and selenium; a machine without them fails these tests, and is told how
to get them, because a page that no browser has opened is not tested.
"""

import json
import math
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from tastemaker.cli import main
from tastemaker.report import Row, Scores
from tastemaker.report.page import write_report
from tastemaker.scorers import ScorerCard

pytestmark = pytest.mark.slow

N = 30
EVIL = {
    3: '"><img src=x onerror=hacked=1>.png',
    4: "' onfocus=hacked=2 autofocus x='.png",
    5: "<script>hacked=3<!--.png",
    6: "日本語 é &amp; #1.png",
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    if missing:
        pytest.fail(f"no {' and '.join(missing)}: apt-get install -y chromium chromium-driver")
    try:
        from selenium import webdriver
    except ImportError:
        pytest.fail('no selenium: pip install "tastemaker[test]"')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.downloads = tmp_path_factory.mktemp("downloads")
    driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(driver.downloads)}
    )
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    """30 pictures, the best first, three with names that try to run code, and one broken file."""
    folder = tmp_path_factory.mktemp("set")
    rows = []
    for i in range(N):
        path = folder / EVIL.get(i, f"picture {i:02}.png")
        Image.new("RGB", (640, 480), (250 - 5 * i, 90, 120)).save(path)
        rows.append(Row(path, (N - i) / N))
    rows.append(Row(Path("broken <b>.png"), math.nan, "damaged picture"))
    card = ScorerCard("brightness", "MIT", "mean pixel", (0.0, 1.0))
    scores = Scores(rows, card.name, card.fingerprint_id, card)
    write_report(folder / "report.html", scores, title="A <set>", keep=10)
    return folder / "report.html", [str(row.path) for row in rows[:N]]


class Report:
    """What a user sees and does."""

    def __init__(self, browser, path: Path, paths: list[str]):
        self.browser, self.paths, self.path = browser, paths, path

    def js(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def click(self, selector: str):
        self.find(selector).click()

    def press(self, *keys: str):
        """Keys for whatever has the focus; a tuple is a chord."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.browser)
        for key in keys:
            *held, last = key if isinstance(key, tuple) else (key,)
            for modifier in held:
                chain.key_down(modifier)
            chain.send_keys(last)
            for modifier in held:
                chain.key_up(modifier)
        chain.perform()

    def write(self, selector: str, text: str):
        from selenium.webdriver.common.keys import Keys

        field = self.find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.ENTER)

    def choose(self, selector: str, value: str):
        self.click(f"{selector} option[value={value}]")

    def cards(self) -> list[int]:
        """Indices of the pictures shown, in the order of the page."""
        shown = self.js(
            "return [...document.querySelectorAll('.card')].filter(c => c.offsetParent)"
            ".map(c => c.dataset.path)"
        )
        return [self.paths.index(path) for path in shown]

    def pick(self, i: int):
        return self.js(
            "return document.querySelector(`.card[data-path=${CSS.escape(arguments[0])}] .pick`)",
            self.paths[i],
        )

    def kept(self) -> list[int]:
        """Indices of the kept pictures, as a screen reader is told; the counts must say the same."""
        pressed = self.js(
            "return [...document.querySelectorAll('.card')].filter(c => "
            "c.querySelector('.pick[aria-pressed=true]')).map(c => c.dataset.path)"
        )
        assert self.find(".counts").text == f"{len(pressed)} kept · {N - len(pressed)} rejected"
        return sorted(self.paths.index(path) for path in pressed)

    def focused(self) -> int | None:
        path = self.js("return document.activeElement.closest('.card')?.dataset.path")
        return None if path is None else self.paths.index(path)

    def saved(self, button: str, name: str) -> list[str]:
        """The lines of the list that a button saves."""
        file = self.browser.downloads / name
        file.unlink(missing_ok=True)
        self.click(button)
        deadline = time.monotonic() + 20
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return file.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def report(browser, report_file):
    """The report freshly opened; afterwards nothing may have gone wrong or out."""
    browser.set_window_size(1300, 950)
    browser.get(report_file[0].as_uri())
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.refresh()
    yield Report(browser, *report_file)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls), urls
    assert browser.execute_script("return typeof hacked") == "undefined"


def test_it_opens_with_the_best_kept_and_everything_listed(report):
    assert report.kept() == list(range(10))
    assert report.cards() == list(range(N))
    assert report.find("h1").text == "A <set>"
    assert "broken <b>.png" in report.find("#errors").text
    for name in EVIL.values():
        assert name in report.find("#grid").text
    assert (
        report.js("return [...document.images].every(i => i.complete && i.naturalWidth)")
        is not None
    )
    ratio = report.js(
        "const i = document.querySelector('.pick img'); return i.naturalWidth / i.naturalHeight"
    )
    assert abs(ratio - 4 / 3) < 0.01


def test_click_toggles_and_is_undone(report):
    report.pick(2).click()
    report.pick(15).click()
    assert report.kept() == [0, 1, *range(3, 10), 15]
    report.click("#undo")
    assert report.kept() == [0, 1, *range(3, 10)]
    report.click("#undo")
    assert report.kept() == list(range(10)) and not report.find("#undo").is_enabled()
    report.click("#redo")
    report.click("#redo")
    assert report.kept() == [0, 1, *range(3, 10), 15] and not report.find("#redo").is_enabled()
    report.click("#undo")
    report.pick(20).click()
    assert not report.find("#redo").is_enabled(), "a new pick ends the redo"


def test_a_pick_taken_back_is_no_longer_by_hand(report):
    report.pick(2).click()
    report.pick(15).click()
    assert report.find("#clear").text == "Forget 2 picks made by hand"
    report.pick(15).click()
    assert report.find("#clear").text == "Forget 1 pick made by hand"
    report.choose("#show", "hand")
    assert report.cards() == [2]


def test_keyboard(report):
    from selenium.webdriver.common.keys import Keys as K

    report.pick(0).click()  # 0 rejected, and has the focus
    assert report.focused() == 0
    report.press(K.ARROW_RIGHT, K.ARROW_RIGHT, "r")
    assert report.focused() == 2 and report.kept() == [1, *range(3, 10)]
    report.press("k")
    report.press("k")  # keeping a kept one changes nothing
    assert report.kept() == list(range(1, 10))
    report.press(K.ARROW_LEFT, K.SPACE)
    assert report.focused() == 1 and report.kept() == list(range(2, 10))
    report.press("u")
    assert report.kept() == list(range(1, 10))
    report.press((K.CONTROL, "z"), (K.CONTROL, "z"), (K.CONTROL, "z"))
    assert report.kept() == list(range(10))
    report.press((K.CONTROL, "y"))
    assert report.kept() == list(range(1, 10))
    report.press((K.SHIFT, "u"))
    assert report.kept() == [1, *range(3, 10)]


def test_arrows_follow_the_columns_and_stay_inside(report):
    from selenium.webdriver.common.keys import Keys as K

    tops = report.js("return [...document.querySelectorAll('.card')].map(c => c.offsetTop)")
    columns = tops.count(tops[0])
    assert 2 < columns < N
    report.pick(1).click()
    report.press(K.ARROW_DOWN)
    assert report.focused() == 1 + columns
    report.press(K.ARROW_UP, K.ARROW_UP)
    assert report.focused() == 0
    report.press(*[K.ARROW_RIGHT] * (N + 3))
    assert report.focused() == N - 1
    inside = """
        const card = document.activeElement.closest('.card').getBoundingClientRect();
        const bar = document.querySelector('.bar').getBoundingClientRect();
        return card.top >= bar.bottom && card.bottom <= innerHeight;
    """
    assert report.js(inside), "the focused picture is scrolled into view"
    for _ in range(3):
        report.press(K.ARROW_UP)
        assert report.js(inside), "and does not hide under the bar"


def test_one_tab_stop_for_all_pictures_and_a_visible_focus(report):
    from selenium.webdriver.common.keys import Keys as K

    stops = report.js("return document.querySelectorAll('.card button[tabindex=\"0\"]').length")
    assert stops == 1
    report.find("#copy-rejected").send_keys(K.TAB)
    assert report.focused() == 0
    assert report.js("return getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_the_threshold_is_dragged_on_the_histogram(report):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys as K

    plot = report.find(".plot svg").rect
    line = float(report.find("#cut").get_attribute("x")) / 1000 * plot["width"]
    slider = report.find("#threshold")
    centre = slider.rect["width"] / 2

    # From the line to the middle of the plot: half of the scores, which are evenly spread.
    grip = round(line + 9 - centre)
    ActionChains(report.browser).move_to_element_with_offset(
        slider, grip, 0
    ).click_and_hold().move_by_offset(10, 0).move_to_element(slider).release().perform()
    assert report.kept() == list(range(15))
    x = float(report.find("#cut").get_attribute("x"))
    assert abs(x - 500) < 5, "the line is where the pointer let it go"
    report.click("#undo")
    assert report.kept() == list(range(10)), "a drag is one step"

    slider.send_keys(K.END)
    assert report.kept() == []
    slider.send_keys(K.HOME)
    assert report.kept() == list(range(N))
    assert "keeps 30" in slider.get_attribute("aria-valuetext")


def test_threshold_by_number_keeps_what_was_picked_by_hand(report):
    report.pick(0).click()
    report.pick(20).click()
    report.write("#best", "3")
    assert report.kept() == [1, 2, 20]
    report.write("#minimum", "0.5")
    assert report.kept() == [*range(1, 16), 20]
    report.write("#best", "0")
    assert report.kept() == [20]
    assert report.find("#clear").text == "Forget 2 picks made by hand"
    report.click("#clear")
    assert report.kept() == []
    report.click("#undo")
    assert report.kept() == [20]


def test_the_lists_hold_exactly_the_picks(report):
    report.pick(1).click()
    report.pick(6).click()  # whose name is not ASCII
    report.pick(29).click()
    kept = [0, *range(2, 6), *range(7, 10), 29]
    assert report.saved("#save-kept", "kept.txt") == [report.paths[i] for i in kept]
    rejected = [i for i in range(N) if i not in kept]
    assert report.saved("#save-rejected", "rejected.txt") == [report.paths[i] for i in rejected]
    arguments = ["filter", "--list", str(report.browser.downloads / "rejected.txt")]
    printed = CliRunner().invoke(main, [*arguments, str(report.path.parent)]).stdout.splitlines()
    assert sorted(printed) == sorted(report.paths[i] for i in rejected), (
        "the filter reads the lists"
    )
    report.write("#search", "picture 2")  # what is hidden is still listed
    assert report.saved("#save-kept", "kept.txt") == [report.paths[i] for i in kept]
    report.write("#best", "0")
    report.click("#clear")
    assert report.saved("#save-kept", "kept.txt") == []


def test_names_that_are_no_lines_are_left_out_of_the_lists_and_told(browser, tmp_path):
    odd = [tmp_path / name for name in ("two\nlines.png", "plain.png", "last\u2028.png")]
    for path in odd:
        Image.new("RGB", (40, 30)).save(path)
    scores = Scores([Row(path, 0.9 - i / 10) for i, path in enumerate(odd)], "x", "y", None)
    write_report(tmp_path / "report.html", scores, title="odd", keep=2)
    browser.get((tmp_path / "report.html").as_uri())
    report = Report(browser, tmp_path / "report.html", list(map(str, odd)))
    assert report.find(".counts").text == "2 kept · 1 rejected"
    assert report.saved("#save-kept", "kept.txt") == [str(odd[1])]
    told = "1 left out: no line of a list can hold its name."
    assert report.find("#message").text.startswith("Saved 1 path as") and told in (
        report.find("#message").text
    )
    report.click("#copy-rejected")
    assert report.find("#message").text == f"Copied 0 paths. {told}"


@pytest.mark.parametrize("api", ["clipboard", "execCommand"])
def test_copy(report, api):
    from selenium.webdriver.common.keys import Keys as K

    if api == "execCommand":
        report.js("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    report.click("#copy-kept")
    report.browser.execute_script(
        "const t = document.createElement('textarea'); t.id = 'pasted';"
        "document.body.prepend(t); scrollTo(0, 0)"
    )
    report.find("#pasted").send_keys(K.CONTROL, "v")
    pasted = report.js("return document.getElementById('pasted').value")
    assert pasted.splitlines() == report.paths[:10]
    assert report.find("#message").text == "Copied 10 paths."


def test_picks_survive_a_reload(report):
    report.pick(0).click()
    report.write("#best", "5")
    report.browser.refresh()
    assert report.kept() == [1, 2, 3, 4]
    assert "last visit" in report.find("#message").text
    report.click("#undo")
    assert report.kept() == list(range(10)), "one step back to how the report was written"


@pytest.mark.parametrize(
    "stored", ['{"threshold": 0.1, "ha', '{"threshold": null, "hand": {}}', "3"]
)
def test_picks_that_cannot_be_read_are_not_trusted(report, stored):
    report.js("localStorage.setItem(storageKey, arguments[0])", stored)
    report.browser.refresh()
    assert report.kept() == list(range(10)) and report.find("#message").text == ""


def test_sort_search_and_show(report):
    report.choose("#sort", "worst")
    assert report.cards() == list(range(N))[::-1]
    report.choose("#sort", "name")
    names = [report.paths[i] for i in report.cards()]
    assert sorted(names) != [] and names.index(report.paths[7]) < names.index(report.paths[8])
    report.choose("#sort", "best")
    report.write("#search", "PICTURE 1")
    assert report.cards() == list(range(10, 20))
    report.write("#search", "nothing of the kind")
    assert report.cards() == [] and report.find("#nothing").is_displayed()
    report.write("#search", " ")
    report.find("#search").clear()
    report.js("document.querySelector('#search').dispatchEvent(new Event('input'))")
    report.choose("#show", "kept")
    assert report.cards() == list(range(10))
    report.pick(0).click()
    assert 0 in report.cards(), "a picture does not vanish under the pointer"
    report.choose("#show", "hand")
    assert report.cards() == [0]
    report.choose("#show", "rejected")
    assert report.cards() == [0, *range(10, N)]


def test_enlarged_pictures_are_the_originals(report):
    from selenium.webdriver.common.keys import Keys as K

    report.pick(7).click()
    report.press(K.ENTER)
    assert report.find("#zoom").is_displayed()
    report.js("return document.querySelector('#zoom img').decode()")
    assert report.js("return document.querySelector('#zoom img').naturalWidth") == 640
    assert (
        "#8" in report.find("#zoom .where").text
        and report.paths[7] in report.find("#zoom .where").text
    )
    assert report.find("#original").get_attribute("href") == Path(report.paths[7]).as_uri()
    report.press(K.ARROW_LEFT, "r")
    assert (
        "#7" in report.find("#zoom .where").text and report.find("#zoom-pick").text == "✕ Rejected"
    )
    report.press(K.SPACE)
    assert report.find("#zoom-pick").text == "✓ Kept"
    report.press("r", K.ESCAPE)
    assert not report.find("#zoom").is_displayed()
    assert report.focused() == 6 and report.kept() == [*range(6), 8, 9]


def test_a_lost_original_is_shown_as_its_thumbnail(report, tmp_path):
    hidden = Path(report.paths[9]).rename(tmp_path / "elsewhere.png")
    try:
        report.js("enlarge(9)")
        wait = "const i = document.querySelector('#zoom img'); return i.complete && i.naturalWidth"
        deadline = time.monotonic() + 10
        while report.js(wait) != 288 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert report.js(wait) == 288
    finally:
        hidden.rename(report.paths[9])
    missing = [e for e in report.browser.get_log("browser") if e["level"] == "SEVERE"]
    assert len(missing) <= 1 and all("ERR_FILE_NOT_FOUND" in e["message"] for e in missing)


def test_injected_code_does_not_run(report):
    report.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"hacked=4\">')")
    report.js(
        "const s = document.createElement('script'); s.textContent = 'hacked=5'; document.body.append(s)"
    )
    report.js(
        "const i = new Image(); i.src = 'https://example.invalid/x.png'; document.body.append(i)"
    )
    time.sleep(0.3)
    refused = [e["message"] for e in report.browser.get_log("browser") if e["level"] == "SEVERE"]
    assert len(refused) >= 2 and all(
        "Content Security Policy" in m or "FILE_NOT" in m for m in refused
    )
    logged = [json.loads(e["message"])["message"] for e in report.browser.get_log("performance")]
    assert not [
        m for m in logged if m["method"] == "Network.responseReceived" and "example" in str(m)
    ]
    report.browser.refresh()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(report, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    report.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    script = """
      const style = getComputedStyle(document.documentElement), c = document.createElement('canvas').getContext('2d');
      const luminance = (name) => {
        c.fillStyle = style.getPropertyValue(name); c.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const pairs = [['--text', '--page'], ['--text', '--panel'], ['--quiet', '--page'], ['--quiet', '--panel'],
        ['--on-keep', '--keep'], ['--keep', '--page'], ['--reject', '--page'], ['--reject', '--panel']];
      return pairs.map(([a, b]) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); });
    """
    ratios = report.js(script)
    report.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(ratios) == 8 and min(ratios) >= 4.5, ratios  # WCAG AA


@pytest.mark.parametrize("width", [360, 768, 2400])
def test_no_width_scrolls_sideways(report, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700}
    report.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wide, inner = report.js("return [document.documentElement.scrollWidth, innerWidth]")
    tops = report.js("return [...document.querySelectorAll('.card')].map(c => c.offsetTop)")
    report.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= inner == width
    assert tops.count(tops[0]) >= 2
