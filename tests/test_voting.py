"""The voting page without a browser: questions and votes, who may enter, pictures, and learning."""

import io
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from cli_tools import Cli, flat_picture
from PIL import Image
from voting_tools import OTHER, TAB, TOKEN, N, Server, flat_pictures, make_booth

from tastemaker.preferences.asking import FIRST, Pair, next_random, next_suggested, read_queue
from tastemaker.preferences.showing import BOXES, box_for, render
from tastemaker.preferences.votes import Votes, read_votes


@pytest.fixture
def folder(tmp_path) -> Path:
    return flat_pictures(tmp_path / "set")


@pytest.fixture
def server(folder):
    with Server(make_booth(folder)) as server:
        yield server


def names(question: dict) -> tuple[str, str]:
    return question["left"]["name"], question["right"]["name"]


# Questions and votes


def test_a_vote_is_kept_and_the_next_pair_is_there(server, folder):
    first, second = server.state()["questions"]
    assert names(first) != names(second)
    status, state = server.post("vote", key=first["key"], answer="left")
    assert status == 200 and state["votes"] == 1 and state["undo"] == first["key"]
    assert state["questions"][0]["key"] == second["key"], "what was prepared before is next"
    (vote,) = Votes(folder.parent / "votes.sqlite").votes("me")
    assert (vote.left.path, vote.right.path) == names(first) and vote.answer == "left"


def test_a_vote_sent_again_counts_once_and_one_that_differs_is_told(server):
    key = server.state()["questions"][0]["key"]
    for _ in range(3):
        status, state = server.post("vote", key=key, answer="tie")
        assert status == 200 and state["votes"] == 1 and state["note"] == ""
    status, state = server.post("vote", key=key, answer="left")
    assert status == 200 and "answered before: tie" in state["note"] and state["votes"] == 1


def test_undo_brings_the_pair_back(server):
    first, second = server.state()["questions"]
    server.post("vote", key=first["key"], answer="left")
    for _ in range(2):  # once is enough, twice is no more
        status, state = server.post("undo", key=first["key"])
        assert status == 200 and state["votes"] == 0 and state["undo"] is None
        again, after = state["questions"]
        assert names(again) == names(first) and again["key"] != first["key"]
        assert after["key"] == second["key"]


def test_a_new_tab_of_a_new_server_undoes_the_last_votes(server, folder):
    asked = []
    for _ in range(3):
        asked.append(server.state()["questions"][0])
        server.post("vote", key=asked[-1]["key"], answer="left")
    with Server(make_booth(folder)) as restarted:
        for question in reversed(asked):
            assert restarted.state(OTHER)["undo"] == question["key"]
            _, state = restarted.post("undo", OTHER, key=question["key"])
            assert names(state["questions"][0]) == names(question)
        assert state["votes"] == 0 and state["undo"] is None


def test_a_pair_that_can_no_longer_be_shown_is_not_taken_back_in_another_tab(server, folder):
    question = server.state()["questions"][0]
    server.post("vote", key=question["key"], answer="left")
    assert server.state(OTHER)["undo"] == question["key"]
    (folder / question["left"]["name"]).unlink()
    assert server.state(OTHER)["undo"] is None and server.state()["undo"] == question["key"]


def test_a_tab_is_shown_the_same_pair_again_and_another_tab_another_one(server):
    mine = server.state()["questions"]
    assert server.state()["questions"] == mine
    others = server.state(OTHER)["questions"]
    assert not {frozenset(names(q)) for q in mine} & {frozenset(names(q)) for q in others}
    assert server.state()["questions"] == mine


def test_a_new_server_asks_the_same_pair_and_takes_the_vote(server, folder):
    first, second = server.state()["questions"]
    with Server(make_booth(folder)) as restarted:
        status, state = restarted.post("vote", key=first["key"], answer="right")
        assert status == 200 and state["votes"] == 1
        assert restarted.state()["questions"][0]["key"] == second["key"]


def test_skipped_pairs_are_not_asked_again_and_are_no_votes(server):
    asked = set()
    for i in range(N * (N - 1) // 2):
        question = server.state()["questions"][0]
        asked.add(frozenset(names(question)))
        status, state = server.post("vote", key=question["key"], answer="skip")
        assert status == 200 and (state["votes"], state["skipped"]) == (0, i + 1)
    assert len(asked) == N * (N - 1) // 2, "every pair came once"
    assert server.state()["questions"] == []


def test_a_queue_is_asked_in_its_order(folder):
    queue = [(folder / f"{a}.png", folder / f"{b}.png") for a, b in [(5, 0), (1, 2), (3, 4)]]
    with Server(make_booth(folder, queue=queue)) as server:
        first, second = server.state()["questions"]
        assert [names(first), names(second)] == [("5.png", "0.png"), ("1.png", "2.png")]
        (third,) = server.state(OTHER)["questions"]
        assert names(third) == ("3.png", "4.png"), "the only one that no other tab shows"
        _, state = server.post("vote", key=first["key"], answer="left")
        assert state["queue"] == [1, 3]


def test_the_second_voter_has_pairs_and_votes_of_her_own(folder):
    for voter in ("ann", "bob"):
        with Server(make_booth(folder, voter)) as server:
            assert server.state()["votes"] == 0
            server.post("vote", key=server.state()["questions"][0]["key"], answer="left")
    assert Votes(folder.parent / "votes.sqlite").voters() == {"ann": 1, "bob": 1}


def test_pictures_that_cannot_be_shown_are_passed_over_and_named(folder):
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "1.png").write_text("no picture")
    (folder / "copy of 2.png").write_bytes((folder / "2.png").read_bytes())
    with Server(make_booth(folder)) as server:
        asked = set()
        while questions := server.state()["questions"]:
            asked.add(frozenset(names(questions[0])))
            server.post("vote", key=questions[0]["key"], answer="tie")
        assert server.state()["broken"] == ["0.png", "1.png"]
        assert {name for pair in asked for name in pair} == {
            *(f"{i}.png" for i in range(2, N)),
            "copy of 2.png",
        }
        assert {"2.png", "copy of 2.png"} not in asked, "a picture and its copy are no pair"


def test_a_pair_whose_picture_was_overwritten_is_dropped(server, folder):
    question = server.state()["questions"][0]
    flat_picture(folder / question["left"]["name"], 1, size=(8, 8))
    assert question["key"] not in [q["key"] for q in server.state()["questions"]]


def test_a_disk_that_is_full_is_an_error_that_the_page_tries_again(server, monkeypatch):
    key = server.state()["questions"][0]["key"]

    def full(*_):
        raise OSError("the file of votes: disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Votes, "vote", full)
        assert server.post("vote", key=key, answer="left") == (
            503,
            {"error": "the file of votes: disk is full"},
        )
    assert server.post("vote", key=key, answer="left")[1]["votes"] == 1


# Who may enter


@pytest.mark.parametrize(
    "path", ["/", "/x/", f"/{TOKEN}x/", f"/{TOKEN[:-1]}/", "/%C3%A9/state", "/%FF/", "//"]
)
def test_without_the_token_nothing_is_told(server, path):
    status, _, body = server.request("GET", path)
    assert status == 403 and b"open the address" in body
    assert TOKEN.encode() not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_rebound_to_this_computer_is_refused(server, host):
    assert server.get("", Host=host)[0] == 403
    assert server.get(f"state?tab={TAB}&box=9", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:9", "LOCALHOST:80"])
def test_this_computer_by_any_of_its_names_is_welcome(server, host):
    assert server.get("", Host=host)[0] == 200


def test_a_foreign_origin_is_refused(server):
    key = server.state()["questions"][0]["key"]
    body = json.dumps({"tab": TAB, "box": 9, "key": key, "answer": "left"}).encode()
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert server.request("POST", f"/{TOKEN}/vote", body, Origin=origin)[0] == 403
    home = f"http://127.0.0.1:{server.port}"
    assert server.request("POST", f"/{TOKEN}/vote", body, Origin=home)[0] == 200


def test_it_listens_to_this_computer_only(server):
    assert server.url.startswith("http://127.0.0.1:")
    import socket

    with socket.socket() as other, pytest.raises(OSError):
        other.settimeout(2)
        other.connect((socket.gethostbyname(socket.gethostname()), server.port))
        if other.getpeername()[0] == "127.0.0.1":  # this machine's name is the loopback itself
            raise OSError


TRAVERSALS = [
    "../../../etc/passwd",
    "%2e%2e%2fvotes.sqlite",
    "0.png",
    "..%2f0.png",
    "0" * 64,
    "%00",
]


@pytest.mark.parametrize("name", TRAVERSALS)
def test_only_pictures_that_were_asked_about_are_given(server, name):
    server.state()
    status, _, body = server.get(f"picture/{name}")
    assert status in (400, 404) and b"root:" not in body and b"SQLite" not in body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'"x"',
        b"null",
        b'{"tab": 3}',
        b'{"tab": "../../x", "box": 9, "key": "k", "answer": "left"}',
        b'{"tab": "tab-number-1", "box": "wide", "key": "k", "answer": "left"}',
        b'{"tab": "tab-number-1", "box": 9, "answer": "left"}',
        b'{"tab": "tab-number-1", "box": 9, "key": ["k"], "answer": "left"}',
        b"[" * 4000,
    ],
)
def test_nonsense_is_refused_in_one_line(server, body):
    for what in ("vote", "undo"):
        status, headers, answer = server.request("POST", f"/{TOKEN}/{what}", body)
        assert status == 400 and json.loads(answer)["error"]
        assert headers["Content-Type"].startswith("application/json")


def test_unknown_keys_answers_paths_and_methods(server):
    key = server.state()["questions"][0]["key"]
    assert server.post("vote", key="unknown", answer="left")[0] == 404
    assert server.post("undo", key=key)[0] == 404
    assert server.post("vote", key=key, answer="up")[0] == 400
    assert server.get("nothing")[0] == 404 and server.get("vote")[0] == 405
    assert server.request("POST", f"/{TOKEN}/vote", b"x" * 9000)[0] == 413
    assert server.state()["votes"] == 0


def test_the_page_may_load_nothing_from_elsewhere(server):
    status, headers, body = server.get("")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert body.decode().count(f'nonce="{nonce}"') == 2 and "{{" not in body.decode()
    assert server.get("")[1]["Content-Security-Policy"] != policy
    assert headers["Referrer-Policy"] == "no-referrer", "the address with its token stays here"
    assert headers["Cache-Control"] == "no-store"
    assert b"http://" not in body.replace(b"http://www.w3.org", b"") and b"https://" not in body


# Pictures


def picture(path: Path, box: int | None) -> Image.Image:
    return Image.open(io.BytesIO(render(path, box).data))


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))


@pytest.mark.parametrize("suffix, kind", [("png", "image/png"), ("webp", "image/webp")])
def test_a_picture_that_fits_is_sent_as_it_is(tmp_path, suffix, kind):
    path = tmp_path / f"x.{suffix}"
    noise((64, 48)).save(path)
    shown = render(path, 64)
    assert shown == (path.read_bytes(), kind, (64, 48)) == render(path, None)


def test_a_larger_one_is_shrunk_for_the_screen_and_whole_for_the_zoom(tmp_path):
    path = tmp_path / "x.png"
    noise((900, 300)).save(path)
    small = render(path, 640)
    assert small.size == (900, 300) and small.kind == "image/jpeg"
    assert picture(path, 640).size == (640, 213)
    assert render(path, None).data == path.read_bytes()


def test_exif_turns_both(tmp_path):
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise((900, 300)).save(path, exif=exif, quality=95)
    assert render(path, None).size == (300, 900)
    assert picture(path, 640).size == (213, 640) and not picture(path, 640).getexif().get(0x0112)


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK", "I;16", "LA", "1"])
def test_what_a_browser_shows_otherwise_is_rendered_as_it_is_scored(tmp_path, mode):
    from tastemaker.scorers.decode import read_picture

    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.frombytes("I;16", (32, 24), random.Random(1).randbytes(2 * 32 * 24)).save(path)
    else:
        noise((32, 24)).convert(mode).save(path)
    shown = render(path, None)
    assert shown.kind == "image/png" and shown.size == (32, 24)
    seen = torch.tensor(list(picture(path, None).convert("RGB").tobytes())).view(24, 32, 3)
    assert torch.equal(seen.permute(2, 0, 1), read_picture(path).long())


def test_of_an_animation_the_first_frame_is_shown(tmp_path):
    path = tmp_path / "x.webp"
    noise((32, 24)).save(path, save_all=True, append_images=[noise((32, 24), 1)], lossless=True)
    assert render(path, 640).kind == "image/jpeg"
    assert picture(path, None).tobytes() == noise((32, 24)).tobytes()


def test_damaged_pictures_are_value_errors(tmp_path):
    whole = io.BytesIO()
    noise((64, 64)).save(whole, "PNG")
    path = tmp_path / "x.png"
    for content in (b"", b"text", whole.getvalue()[:2000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be opened: .*x\.png"):
            render(path, 640)


def test_boxes_grow_in_steps():
    assert [box_for(n) for n in (0, 640, 641, 10**9)] == [BOXES[0], 640, BOXES[1], BOXES[-1]]


def test_a_picture_comes_through_the_server(server, folder):
    left = server.state()["questions"][0]["left"]
    assert (left["width"], left["height"]) == (40, 30)
    for query in ("", "?box=900"):
        status, headers, body = server.get(f"picture/{left['id']}{query}")
        assert status == 200 and body == (folder / left["name"]).read_bytes()
        assert headers["Content-Type"] == "image/png" and "immutable" in headers["Cache-Control"]
    (folder / left["name"]).unlink()
    assert server.get(f"picture/{left['id']}")[0] == 503


# Which pair is next


def test_all_pictures_come_up_evenly_and_on_both_sides():
    pictures = [Path(f"{i:02}") for i in range(20)]
    rng, taken, left, shown = random.Random(0), set(), 0, dict.fromkeys(pictures, 0)
    for _ in range(100):
        found = next_random(pictures, taken, {}, rng)
        taken.add(Pair(found[:2]))
        left += found.left < found.right
        for path in found[:2]:
            shown[path] += 1
    assert len(taken) == 100 and set(shown.values()) == {10}
    assert 30 < left < 70


def test_suggestions_leave_a_share_to_chance():
    pictures = [Path(str(i)) for i in range(40)]
    best = (pictures[3], pictures[7])

    def sources(votes: int, taken=frozenset()) -> list[str]:
        rng = random.Random(1)
        how = dict(rng=rng, suggest=lambda taken, seed: best, votes=votes)
        return [next_suggested(pictures, taken, {}, **how).source for _ in range(400)]

    assert set(sources(FIRST - 1)) == {"random"}
    assert 60 < sources(FIRST).count("random") < 140
    assert set(sources(FIRST, {Pair(best)})) == {"random"}, "what is taken is not suggested"


def test_a_share_of_the_random_pairs_are_those_that_others_judged():
    pictures = [Path(f"{i:02}") for i in range(60)]
    judged = [(pictures[i], pictures[i + 1]) for i in range(0, 58, 2)]

    def found(judged, suggest=None, votes=0, broken=(), seed=0) -> list:
        rng, taken = random.Random(seed), set()
        how = dict(suggest=suggest, votes=votes, judged=judged)
        for _ in range(100):
            taken.add(Pair((pair := next_suggested(pictures, taken, broken, rng, **how))[:2]))
            yield pair

    pairs = list(found(judged))
    shared = [Pair(pair[:2]) for pair in pairs if pair.source == "shared"]
    assert 15 < len(shared) == len(set(shared)) and set(shared) <= set(map(Pair, judged))
    assert len({Pair(pair[:2]) for pair in pairs}) == 100
    assert {pair.source for pair in pairs} == {"shared", "random"}
    sides = [(pair.left, pair.right) in judged for pair in pairs if pair.source == "shared"]
    assert True in sides and False in sides, "the side tells nothing either"
    assert pairs == list(found(judged)) != list(found(judged, seed=1)), "the seed decides"
    gone = judged[0][0]
    assert not any(gone in pair[:2] for pair in found(judged, broken={gone}))
    plain = list(found(()))
    assert {pair.source for pair in plain} == {"random"}

    rng, taken, alone = random.Random(0), set(), []
    for _ in range(100):
        alone.append(next_random(pictures, taken, (), rng))
        taken.add(Pair(alone[-1][:2]))
    assert plain == alone, "with one voter nothing changes"


def test_two_voters_of_one_store_come_to_share_pairs(folder):
    """Of 30 and 20 votes on 40 pictures, chance alone would make them share one."""
    for i in range(N, 40):
        flat_picture(folder / f"{i}.png", 5 * i, size=(40, 30))

    def vote(voter: str, count: int) -> None:
        with Server(make_booth(folder, voter)) as server:
            for i in range(count):
                question = server.state()["questions"][0]
                answer = ("left", "right", "tie")[i % 3]
                server.post("vote", key=question["key"], answer=answer)

    def judged(voter: str) -> set:
        return {Pair((v.left.path, v.right.path)) for v in store.votes(voter)}

    store = Votes(folder.parent / "votes.sqlite", folder)
    vote("ann", 30)
    assert {v.source for v in store.votes("ann")} == {"random"}, "alone, nothing changes"
    vote("bob", 20)
    shared = {Pair((v.left.path, v.right.path)) for v in store.votes("bob") if v.source == "shared"}
    assert len(shared) >= 2 and shared <= judged("ann") & judged("bob")


def test_shared_pairs_are_of_these_pictures_and_were_neither_skipped_nor_suggested(folder):
    booth = make_booth(folder)
    votes, paths = booth.store, [folder / f"{i}.png" for i in range(N)]
    outside = flat_picture(folder.parent / "outside.png", 3)
    votes.add("ann", paths[0], paths[1], "left")
    votes.add("bob", paths[1], paths[0], "tie")
    votes.add("ann", paths[2], paths[3], "skip")
    votes.add("ann", paths[2], outside, "left")
    votes.add("me", paths[4], paths[5], "left")
    votes.vote(votes.ask("ann", TAB, paths[3], paths[4], "suggested").key, "left")
    assert [Pair(pair) for pair in booth._judged_by_others()] == [Pair(paths[:2])]


def test_queues_are_read_with_their_paths_and_errors(tmp_path):
    path = tmp_path / "pairs.csv"

    def read(text: str):
        path.write_text(text, encoding="utf-8")
        return read_queue(path)

    a, b, c = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    assert read("left,right,p\na.png,b.png,1\nb.png,a.png,0\na.png,./c.png,\n") == [(a, b), (a, c)]
    assert read("\ufeffright,left\na.png,b.png\n") == [(b, a)]
    for text, error in [
        ("a,b\nx,y\n", "line 1 .* columns left and right, got a,b"),
        ("left,right\n", "has no pairs"),
        ("left,right\na.png,\n", "line 2 .*: a pair needs"),
        ("left,right\na.png,b.png\na.png,x/../a.png\n", "line 3 .*: a.png with itself"),
        ("left,right,{}\n".format("x" * 140_000), r"line 1 .* is not CSV: field larger"),
        ("left,right\na.png,{}\n".format("x" * 140_000), r"line 2 .* is not CSV: field larger"),
    ]:
        with pytest.raises(ValueError, match=error):
            read(text)


# The command


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


def test_without_aiohttp_the_error_says_what_to_install(run, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert 'pip install "tastemaker[vote]"' in run.error("vote", folder)


def test_wrong_sources_are_told(run, folder, tmp_path):
    lone = tmp_path / "lone" / "x.png"
    flat_picture(lone, 3)
    assert "two pictures" in run.error("vote", lone.parent)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("left,right\nset/0.png,set/gone.png\n")
    assert "1 pictures of" in run.error("vote", pairs) and "gone.png" in run.error("vote", pairs)
    assert "give the pairs once" in run.error("vote", pairs, "--pairs", pairs)
    foreign = tmp_path / "foreign.sqlite"
    foreign.write_text("x" * 4096)
    assert "not a file of votes" in run.error("vote", folder, "--store", foreign)
    assert "needs a name" in run.usage_error("vote", folder, "--voter", " ")


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_votes_are_exported_for_other_programs(run, folder, tmp_path, suffix):
    from tastemaker.preferences.comparisons import read_comparisons

    store = tmp_path / "votes.sqlite"
    votes = Votes(store, folder)
    votes.add("me", folder / "0.png", folder / "1.png", "left")
    votes.add("me", folder / "2.png", folder / "1.png", "tie")
    votes.add("ann", folder / "2.png", folder / "0.png", "left")
    out = tmp_path / f"out.{suffix}"
    assert "2 votes of me" in run("vote", folder, "--store", store, "--export", out).output
    exported, _ = read_comparisons(out)
    mine = read_votes(store, voter="me")
    assert list(exported.rows()) == list(mine.rows()) and len(mine) == 2
