"""The voting page in a real browser, on a real server in a process of its own that can be killed."""

import contextlib
import re
import signal
import time
from pathlib import Path

import pytest
from cli_tools import flat_picture, start
from comfyui_page import open_browser
from PIL import Image

from tastemaker.preferences.votes import Votes

pytestmark = pytest.mark.slow

N = 8
EVIL = "<img src=x onerror=hacked=1>'\"&amp;.png"
# What a browser says of requests to a server that is killed: before, while and after they are taken.
CUT_OFF = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE")
NANO = """
from tastemaker.scorers.load import load_scorer
scorer = lambda: load_scorer("nano")
"""


@pytest.fixture(scope="module")
def browser():
    driver = open_browser(forget=False)  # the page knows its tab again after a reload
    yield driver
    driver.quit()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Pictures of different shapes, one larger than any screen, one with a name that is code."""
    for i in range(N - 2):
        size = (640, 480) if i % 2 else (480, 640)
        flat_picture(tmp_path / "set" / f"{i}.png", 30 * i + 10, size)
    flat_picture(tmp_path / "set" / EVIL, 220, (640, 640))
    Image.linear_gradient("L").resize((5000, 3000)).save(tmp_path / "set" / "large.png")
    return tmp_path / "set"


class Program:
    """`tastemaker vote` in a process of its own."""

    def __init__(self, folder: Path, *options: str, setup: str = ""):
        self.folder, self.options, self.setup = folder, options, setup
        self.home, self.store = folder.parent / "home", folder.parent / "votes.sqlite"
        self.killed = False  # ever
        self.start()

    def start(self) -> None:
        args = ["vote", self.folder, "--store", self.store, "--no-browser", *self.options]
        self.run = start(args, self.home, self.setup)
        for line in self.run.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/\S+", line):
                self.url = found[0]
                return
        pytest.fail(f"it did not start: {self.run.stderr.read()}")

    def end(self, how: int = signal.SIGINT) -> str:
        """What it says at the end."""
        self.killed |= how == signal.SIGKILL
        if self.run.poll() is None:
            self.run.send_signal(how)
        said, errors = self.run.communicate(timeout=60)
        assert how == signal.SIGKILL or errors == "", errors
        return said

    def votes(self) -> list[tuple[str, str, str]]:
        votes = Votes(self.store).votes()
        return [(vote.left.path, vote.right.path, vote.answer) for vote in votes]


@pytest.fixture
def program(folder):
    program = Program(folder, "--no-learning")
    yield program
    program.end(signal.SIGKILL)


class Page:
    """What a voter sees and does, in one tab."""

    def __init__(self, browser, program: Program):
        self.browser, self.program = browser, program
        browser.get(program.url)
        self.tab = browser.current_window_handle
        self.wait("shown")

    def js(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, expression: str, timeout: float = 30):
        """Waits until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while not (found := self.js(f"return {expression}")):
            assert time.monotonic() < deadline, f"{expression}: {self.notice()}"
            time.sleep(0.02)
        return found

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def focus(self) -> "Page":
        self.browser.switch_to.window(self.tab)
        return self

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.browser)
        *held, last = keys
        for key in held:
            chain.key_down(key)
        chain.send_keys(last)
        for key in held:
            chain.key_up(key)
        chain.perform()

    def ready(self) -> tuple[str, str]:
        """The names of the pair, once it is on the screen and may be voted on."""
        self.wait(
            "shown && !busy && sides.left.dataset.key === shown.key "
            "&& performance.now() - shownSince > SETTLE && state.questions[0].key === shown.key"
        )
        return tuple(self.js("return [shown.left.name, shown.right.name]"))

    def vote(self, act) -> tuple[str, str]:
        """Does it, and waits until the vote is kept; the pair that it was about."""
        pair, key = self.ready(), self.js("return shown.key")
        act()
        self.wait(f"!busy && shown?.key !== {key!r}")
        return pair

    def notice(self) -> str:
        return self.js("return $('notice').hidden ? '' : $('notice').textContent")

    def count(self) -> int:
        return int(self.find("#votes").text)

    def scales(self) -> list[float]:
        """By how much each of the pictures is magnified."""
        return self.js(
            "return Object.values(images).map(i => i.style.transform "
            "? new DOMMatrix(getComputedStyle(i).transform).a : 1)"
        )


@pytest.fixture
def page(browser, program):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page = Page(browser, program)
    browser.get_log("browser")
    yield page
    severe = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    gone = CUT_OFF if program.killed else ()
    assert [message for message in severe if not any(how in message for how in gone)] == []
    assert page.js("return typeof hacked") == "undefined"


def test_every_key(page):
    from selenium.webdriver.common.keys import Keys as K

    answers = {
        K.ARROW_LEFT: "left",
        "a": "left",
        "1": "left",
        K.ARROW_RIGHT: "right",
        "D": "right",
        "2": "right",
        K.ARROW_DOWN: "tie",
        K.SPACE: "tie",
        "s": "skip",
    }
    expected = [(*page.vote(lambda key=key: page.press(key)), answers[key]) for key in answers]
    assert page.program.votes() == expected
    assert page.count() == 8 and page.find("#skipped").text == "1 skipped"
    assert page.js("return $('said').textContent") == "Skipped. 8 votes."


def test_mouse_buttons_and_tab(page):
    from selenium.webdriver.common.keys import Keys as K

    acts = [
        (lambda: page.find("#left").click(), "left"),
        (lambda: page.press(K.SPACE), "tie"),  # the picture that was clicked does not keep the keys
        (lambda: page.find("#right").click(), "right"),
        (lambda: page.find("#vote-left").click(), "left"),
        (lambda: page.press(K.SPACE), "tie"),
        (lambda: page.find("#skip").click(), "skip"),
        (lambda: page.find("#vote-right").send_keys(K.SPACE), "right"),  # reached with Tab
        (lambda: page.press(K.ARROW_LEFT), "left"),
    ]
    expected = [(*page.vote(act), answer) for act, answer in acts]
    assert page.program.votes() == expected


def test_undo_brings_pairs_back_one_by_one(page):
    from selenium.webdriver.common.keys import Keys as K

    assert not page.find("#undo").is_enabled()
    first, second, third, fourth = [page.vote(lambda: page.press("a")) for _ in range(4)]
    fifth = page.ready()
    undos = [
        lambda: page.press("z"),
        lambda: page.press(K.BACKSPACE),
        lambda: page.press(K.CONTROL, "z"),
        lambda: page.find("#undo").click(),
    ]
    for undo, pair in zip(undos, (fourth, third, second, first), strict=True):
        page.vote(undo)
        assert page.ready() == pair
    assert page.program.votes() == [] and page.count() == 0
    assert not page.find("#undo").is_enabled()
    page.press("z")  # there is nothing left to undo
    again = [page.vote(lambda: page.press("d")) for _ in range(4)]
    assert again == [first, second, third, fourth] and page.ready() == fifth
    assert [answer for *_, answer in page.program.votes()] == ["right"] * 4
    assert len(Votes(page.program.store).history()) == 8


def test_a_reload_shows_the_same_pair_and_can_undo(page):
    first = page.vote(lambda: page.press("a"))
    pair = page.ready()
    for _ in range(2):
        page.browser.refresh()
        assert page.ready() == pair
    page.vote(lambda: page.press("z"))
    assert page.ready() == first and page.program.votes() == []


def test_two_tabs_have_pairs_of_their_own(page):
    page.browser.switch_to.new_window("tab")
    other = Page(page.browser, page.program)
    try:
        seen = []
        for _ in range(4):
            for tab in (page, other):
                seen.append((*tab.focus().vote(lambda tab=tab: tab.press("a")), "left"))
        assert sorted(page.program.votes()) == sorted(seen)
        assert len({frozenset(pair[:2]) for pair in seen}) == 8
        other.focus().vote(lambda: other.press("z"))
        assert other.ready() == seen[-1][:2], "undo is a matter of the tab"
        assert page.program.votes() == seen[:-1]
    finally:
        other.focus().browser.close()
        page.focus()


def test_a_new_tab_undoes_what_a_closed_one_voted(page):
    pairs = [page.vote(lambda: page.press("a")) for _ in range(2)]
    page.browser.switch_to.new_window("tab")
    new = Page(page.browser, page.program)
    page.focus().browser.close()
    page.tab = new.tab  # the one that is left
    new.focus()
    for pair in reversed(pairs):
        new.ready()
        new.vote(lambda: new.press("z"))
        assert new.ready() == pair
    assert page.program.votes() == [] and not new.find("#undo").is_enabled()


def test_a_duplicated_tab_counts_no_pair_twice(page):
    page.ready()
    page.js("window.open(location.href)")  # takes the tab's storage along, as a duplicate does
    handles = [handle for handle in page.browser.window_handles if handle != page.tab]
    page.browser.switch_to.window(handles[0])
    try:
        twin = Page.__new__(Page)
        twin.browser, twin.program, twin.tab = page.browser, page.program, handles[0]
        twin.wait("typeof shown !== 'undefined' && shown")
        page.js("sessionStorage.setItem('tastemaker:tab', 'x')")
        pair = twin.ready()
        assert page.focus().ready() == pair
        page.press("a")
        twin.focus()
        twin.press("d")  # before or after it has noticed
        page.wait("!busy")
        time.sleep(1)
        votes = page.program.votes()
        assert votes[0] == (*pair, "left") and len({vote[:2] for vote in votes}) == len(votes)
    finally:
        page.browser.close()
        page.focus()


def test_kill_9_and_restart_lose_no_vote_and_the_page_goes_on(page):
    program = page.program
    expected = [(*page.vote(lambda: page.press("a")), "left") for _ in range(3)]
    url = program.url
    for turn in range(2):
        pair = page.ready()
        program.end(signal.SIGKILL)
        page.press("d")
        page.wait("busy && !$('notice').hidden")
        assert page.notice().startswith("Not saved yet - trying again")
        page.press("a", "z")  # nothing else is sent before it is kept
        assert page.find("#early").text == "Please wait: not undone"
        program.start()
        assert program.url == url, "the page's address is the same"
        page.wait("!busy && $('notice').hidden")
        expected.append((*pair, "right"))
        assert program.votes() == expected and page.count() == 4 + turn
    expected.append((*page.vote(lambda: page.press(" ")), "tie"))
    assert program.votes() == expected


def test_killed_between_the_vote_and_its_answer_it_is_kept_once(page):
    """The server dies after the vote is on the disk, before the page is told."""
    program, pair = page.program, page.ready()
    Votes(program.store).vote(page.js("return shown.key"), "left")
    program.end(signal.SIGKILL)
    page.press("a")
    page.wait("busy && !$('notice').hidden")
    program.start()
    page.wait("!busy && $('notice').hidden")
    assert program.votes() == [(*pair, "left")] and page.count() == 1
    assert page.ready() != pair


def test_a_reload_while_the_server_is_away(page):
    pair = page.ready()
    page.program.end(signal.SIGKILL)
    page.wait("!$('notice').hidden")
    assert "No connection" in page.notice()
    page.program.start()
    page.wait("$('notice').hidden")
    page.browser.refresh()
    assert page.ready() == pair


def test_holding_a_picture_magnifies_both_at_the_same_place_and_is_no_vote(page):
    from selenium.webdriver import ActionChains

    while EVIL in page.ready() or "large.png" not in page.ready():
        page.vote(lambda: page.press("s"))
    pair = page.ready()
    side = "left" if pair[0] == "large.png" else "right"
    assert page.js(f"return images.{side}.naturalWidth") < 5000, "shrunk for the screen"
    chain = ActionChains(page.browser)
    chain.move_to_element_with_offset(page.find(f"#{side}"), 40, 30).click_and_hold().perform()
    page.wait("zoomed")
    page.wait(f"images.{side}.naturalWidth === 5000")  # every pixel of the file
    scales = page.scales()
    assert scales[0] == scales[1] >= 2
    shown = page.js(f"return shown.{side}.width / images.{side}.offsetWidth / devicePixelRatio")
    assert scales[0] == pytest.approx(max(2, shown), rel=0.01)
    origin = page.js("return Object.values(images).map(i => i.style.transformOrigin)")
    assert origin[0] == origin[1] != "50% 50%"
    ActionChains(page.browser).move_by_offset(-80, -60).perform()
    moved = page.js("return Object.values(images).map(i => i.style.transformOrigin)")
    assert moved[0] == moved[1] != origin[0]
    ActionChains(page.browser).release().perform()
    page.wait("!zoomed")
    assert page.scales() == [1, 1] and page.ready() == pair
    assert all(answer == "skip" for *_, answer in page.program.votes())


def test_zoom_by_key_button_and_shift(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys as K

    pair = page.ready()
    for toggle in (lambda: page.press("f"), lambda: page.find("#zoom").click()):
        toggle()
        assert min(page.scales()) >= 2
        assert page.find("#zoom").get_attribute("aria-pressed") == "true"
        toggle()
        assert page.scales() == [1, 1]
    page.press("f")
    page.press(K.ESCAPE)
    assert page.scales() == [1, 1]
    ActionChains(page.browser).key_down(K.SHIFT).perform()
    assert min(page.scales()) >= 2
    ActionChains(page.browser).key_up(K.SHIFT).perform()
    assert page.scales() == [1, 1] and page.ready() == pair and page.program.votes() == []
    page.press("f")
    page.vote(lambda: page.press("a"))
    assert page.scales() == [1, 1], "the next pair is seen whole first"


def test_a_key_that_is_held_or_pressed_twice_is_one_vote(page):
    pair = page.ready()
    key = "new KeyboardEvent('keydown', {key: 'a', bubbles: true, repeat: %s})"
    page.js(
        f"document.body.dispatchEvent({key % 'false'});"
        + f"document.body.dispatchEvent({key % 'true'});" * 5
        + f"document.body.dispatchEvent({key % 'false'});"
    )
    page.wait("!busy && state.votes === 1")
    assert page.ready() != pair and page.program.votes() == [(*pair, "left")]


def test_a_press_is_a_vote_or_seen_not_to_be_one(page):
    page.ready()
    page.js("""
        window.signs = 0; window.presses = 0;
        new MutationObserver(() => { signs += 1; }).observe($('early'), {childList: true});
        const press = () => {
            document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', bubbles: true}));
            if (++presses % 10) setTimeout(press, 150);
        };
        press();
    """)
    page.wait("presses === 10 && !busy")
    votes, signs = len(page.program.votes()), page.js("return signs")
    assert votes + signs == 10 and votes >= 1
    page.ready()
    page.wait("$('early').hidden")
    page.js("vote('left'); vote('left')")
    assert page.find("#early").text == "Too quick: not counted"
    page.wait("!busy")
    assert len(page.program.votes()) == votes + 1
    page.ready()
    page.js("vote('left'); undo()")
    assert page.find("#early").text == "Too quick: not undone"
    page.wait("!busy && $('early').hidden")
    assert len(page.program.votes()) == votes + 2


def test_no_vote_on_a_pair_whose_pictures_are_not_on_the_screen_yet(page):
    page.ready()
    page.js("""
        window.decode = HTMLImageElement.prototype.decode;
        window.slow = new Promise((done) => { window.arrive = done; });
        HTMLImageElement.prototype.decode = () => slow;
    """)
    page.press("a")
    page.wait("!busy && state.votes === 1 && shown && shown.key !== sides.left.dataset.key")
    time.sleep(0.5)
    page.press("d")
    assert page.find("#early").text == "Too quick: not counted"
    assert len(page.program.votes()) == 1
    page.js("arrive(); HTMLImageElement.prototype.decode = decode;")
    page.vote(lambda: page.press("d"))
    assert [answer for *_, answer in page.program.votes()] == ["left", "right"]


def test_the_next_pair_is_there_at_once(page):
    """It is fetched and decoded while the voter looks at the pair before."""
    for _ in range(3):
        page.ready()
        page.wait("state.questions.length > 1")
        following = page.js("return state.questions[1]")
        assert page.wait(
            "[...ready.values()].length === 4 && [...ready.values()].every(i => i.complete)"
        )
        page.vote(lambda: page.press("a"))
        assert page.js("return shown.key") == following["key"]


def test_names_are_hidden_until_they_are_asked_for(page):
    while EVIL not in (pair := page.ready()):
        page.vote(lambda: page.press("s"))
    text = page.find("body").text
    assert not any(name in text for name in pair)
    alts = "return Object.values(images).map(i => i.alt)"
    assert page.js(alts) == ["The left picture", "The right picture"]
    page.press("n")
    assert [label.text for label in page.browser.find_elements("css selector", ".name")] == [*pair]
    assert page.js(alts) == [*pair]
    page.press("n")
    assert page.js(alts) == ["The left picture", "The right picture"]


def test_a_narrow_screen_and_a_finger(page):
    page.ready()
    metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.wait("$('pair').classList.contains('stacked')")
        rects = page.js("return Object.values(sides).map(s => s.getBoundingClientRect().toJSON())")
        assert rects[0]["bottom"] <= rects[1]["top"] and rects[0]["height"] > 200
        inside = """
            const {innerWidth: w, innerHeight: h} = window;
            return [...document.querySelectorAll('button:not([hidden]), .side img')].every(e => {
                const r = e.getBoundingClientRect();
                return r.width > 20 && r.left >= 0 && r.right <= w && r.top >= 0 && r.bottom <= h;
            });
        """
        assert page.js(inside)
        assert page.find("#vote-left").text == "Upper"
        assert page.find("#right").get_attribute("aria-label") == "Prefer the lower picture"
        point = {"x": rects[1]["x"] + 100, "y": rects[1]["y"] + 100}

        def tap(hold: float = 0):
            touch = {"type": "touchStart", "touchPoints": [point]}
            page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
            time.sleep(hold)
            touch = {"type": "touchEnd", "touchPoints": []}
            page.browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)

        pair = page.ready()
        page.vote(tap)
        assert page.program.votes() == [(*pair, "right")]
        page.ready()
        tap(hold=0.6)
        page.wait("!zoomed")
        time.sleep(0.3)
        assert len(page.program.votes()) == 1, "a finger that stays magnifies"
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_in_light_and_dark(page, scheme):
    """WCAG 2: a contrast of 4.5 for every text."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        page.vote(lambda: page.press("a"))  # the undo button is enabled
        page.ready()
        contrasts = page.js("""
            const light = (rgb) => rgb.slice(0, 3).map(v => v / 255)
                .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
            const colour = (text) => text.match(/[\\d.]+/g).map(Number);
            const behind = (e) => {
                const c = colour(getComputedStyle(e).backgroundColor);
                return c.length === 4 && c[3] === 0 ? behind(e.parentElement) : c;
            };
            return [...document.querySelectorAll('header *, footer button, footer kbd')]
                .filter(e => e.offsetParent && e.textContent.trim() && !e.closest('[disabled]'))
                .filter(e => Number(getComputedStyle(e).opacity) === 1)
                .map(e => {
                    const a = light(colour(getComputedStyle(e).color)), b = light(behind(e));
                    return [e.textContent.trim(), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
                });
        """)
        assert len(contrasts) > 10
        assert [text for text, contrast in contrasts if contrast < 4.5] == []
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_screen_readers_are_told_what_to_do(page):
    page.ready()
    nameless = page.js("""
        return [...document.querySelectorAll('button, progress, main, footer')]
            .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.id);
    """)
    assert nameless == []
    page.vote(lambda: page.press("a"))
    assert page.js("return $('said').textContent") == "The left one. 1 votes."
    assert page.find("#said").get_attribute("aria-live") == "polite"
    assert page.find("#notice").get_attribute("role") == "alert"


def test_at_the_end_it_says_how_to_train(browser, folder):
    pairs = folder.parent / "pairs.csv"
    pairs.write_text("left,right\nset/0.png,set/1.png\nset/2.png,set/3.png\n")
    program = Program(folder, "--no-learning", "--pairs", str(pairs))
    try:
        page = Page(browser, program)
        assert page.find("#progress").text == "0 of 2 pairs"
        assert page.ready() == ("0.png", "1.png")
        page.vote(lambda: page.press("a"))
        assert page.ready() == ("2.png", "3.png")
        page.press("d")
        page.wait("!$('end').hidden")
        assert page.find("#progress").text == "2 of 2 pairs"
        assert page.find("#end-title").text == "Everything is answered"
        train = f"tastemaker train {program.store} --base nano --out my-taste"
        assert page.find("#train").text == train
        page.press("z")
        page.wait("$('end').hidden")
        assert page.ready() == ("2.png", "3.png")
        said = program.end()
        assert "1 vote of me in" in said and f"Train your scorer: {train}" in said
        assert program.run.returncode == 0
    finally:
        program.end(signal.SIGKILL)


def test_another_token_opens_nothing(browser, program):
    browser.get(program.url[:-2] + "/")
    assert "open the address that" in browser.find_element("css selector", "body").text
    browser.get_log("browser")


def test_it_learns_with_a_real_scorer_while_votes_are_made(browser, tmp_path):
    """Eight noisy pictures and their blurred copies: the noisy one wins, which nano alone gets wrong."""
    from PIL import ImageFilter

    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(8):
        noise = Image.effect_noise((96, 96), 60 + 10 * i).resize((256, 256)).convert("RGB")
        noise.save(folder / f"sharp {i}.png")
        noise.filter(ImageFilter.GaussianBlur(4)).save(folder / f"blurred {i}.png")
    program = Program(folder, setup=NANO)
    try:
        page = Page(browser, program)
        # Suggested pairs and ties are not counted, and how many come is a matter of speed.
        while page.js("return state.learning.tested") < 24:
            assert len(program.votes()) < 150, page.js("return state.learning")
            for _ in range(8):
                left, right = page.ready()
                sharp = [name.startswith("sharp") for name in (left, right)]
                key = " " if sharp[0] == sharp[1] else "a" if sharp[0] else "d"
                page.vote(lambda key=key: page.press(key))
            page.wait("!state.learning.doing", 90)
        page.wait("/^Guesses your choice \\d+ %$/.test($('guess').textContent)")
        assert page.js("return state.learning.error") == ""
        accuracy, base = page.js("return [state.learning.accuracy, state.learning.base]")
        assert accuracy > 0.7 and base < 0.3
        assert "unseen pairs" in page.find("#detail").text
        assert page.js("return $('curve').points.length") > 1
        with contextlib.suppress(KeyError):
            assert page.js("return state.questions[0].source") in ("random", "suggested")
    finally:
        program.end(signal.SIGKILL)
