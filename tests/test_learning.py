"""What learns behind the voting page: each vote is guessed first, and no fault stops votes or learning."""

import logging
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from voting_tools import TAB, N, Server, flat_pictures, make_booth

from tastemaker.preferences.asking import Pair
from tastemaker.preferences.learning import PAUSED, Features, Guess, Learner, measure
from tastemaker.preferences.votes import Votes
from tastemaker.preferences.votes_file import Vote


@pytest.fixture
def folder(tmp_path) -> Path:
    return flat_pictures(tmp_path / "set")


class Brightness:
    """A model of one feature, the picture's mean; the base prefers the dark ones.

    `fail` is the method that does not work just now.
    """

    w0 = torch.tensor([-1.0])

    def __init__(self, fail: str = ""):
        self.fail, self.fits = fail, []

    def check(self, method: str) -> None:
        if self.fail == method:
            raise RuntimeError("index 5 is out of bounds\nfor dimension 0")

    def embed(self, paths):
        self.check("embed")
        return torch.tensor([[float(Image.open(path).getpixel((0, 0))[0])] for path in paths])

    def fit(self, x, pairs, p):
        self.check("fit")
        self.fits.append(len(p))
        agree = ((x[pairs[:, 0], 0] - x[pairs[:, 1], 0]) * (p - 0.5)).sum()
        return agree.sign()[None].float()

    def suggest(self, x, pairs, p, w):
        self.check("suggest")
        return [(i, i + 1) for i in (0, 2) if i + 1 < len(x)]


def wait_for(ready, timeout: float = 30):
    end = time.monotonic() + timeout
    while not (found := ready()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


@pytest.fixture
def learning(folder):
    """A learner on six grey pictures, and votes for the brighter ones."""
    votes = Votes(folder.parent / "votes.sqlite", folder)
    learners = []

    def start(model=None, load=None) -> Learner:
        pictures = sorted(folder.glob("*.png"))
        load = load or (lambda: model or Brightness())
        learners.append(Learner(votes, "me", pictures, load, "nano"))
        learners[-1].start()
        return learners[-1]

    yield start, votes, folder
    for learner in learners:
        learner.stop()


def vote_for_brighter(votes: Votes, folder: Path, count: int, source: str = "random"):
    done = {frozenset((v.left.path, v.right.path)) for v in votes.votes()}
    for a in range(N):
        for b in range(a):
            if count and frozenset((f"{a}.png", f"{b}.png")) not in done:
                pair = (folder / f"{a}.png", folder / f"{b}.png")
                votes.vote(votes.ask("me", TAB, *pair, source).key, "left")
                count -= 1


def test_a_vote_is_guessed_before_it_is_learned_from(learning):
    start, votes, folder = learning
    learner = start()
    vote_for_brighter(votes, folder, 1)
    learner.votes_changed()
    wait_for(lambda: learner.progress()["tested"] == 1)
    assert learner.progress()["accuracy"] == 0, "the base prefers the dark ones"
    vote_for_brighter(votes, folder, 4)
    learner.votes_changed()
    progress = wait_for(lambda: learner.progress()["tested"] == 5 and learner.progress())
    assert progress["accuracy"] == 0.8 and progress["base"] == 0.0
    assert progress["low"] < 0.8 < progress["high"] and progress["error"] == ""


def test_a_restart_guesses_again_without_looking_ahead(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 15)
    model = Brightness()
    learner = start(model)
    progress = wait_for(lambda: learner.progress()["tested"] == 15 and learner.progress())
    assert progress["accuracy"] == 14 / 15
    assert model.fits[:3] == [1, 2, 3] and max(model.fits) == 15


def test_suggested_pairs_and_ties_are_learned_from_but_not_counted(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 3, "suggested")
    votes.add("me", folder / "5.png", folder / "0.png", "tie")
    votes.add("me", folder / "5.png", folder / "1.png", "skip")
    model = Brightness()
    learner = start(model)
    wait_for(lambda: 4 in model.fits and learner.progress()["doing"] == "")
    assert learner.progress()["tested"] == 0 and max(model.fits) == 4


def test_what_is_undone_is_unlearned(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 3)
    model = Brightness()
    learner = start(model)
    wait_for(lambda: learner.progress()["tested"] == 3)
    votes.undo(votes.votes()[-1].key)
    learner.votes_changed()
    wait_for(lambda: learner.progress()["tested"] == 2)
    assert model.fits[-1] == 2


def test_suggestions_are_pairs_that_are_not_taken(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 1)
    learner = start()
    first = wait_for(lambda: learner.suggest((), 0))
    second = wait_for(lambda: learner.suggest({Pair(first)}, 0))  # once all pictures are known
    assert second != first
    assert learner.suggest({Pair(first), Pair(second)}, 0) is None


def test_a_picture_that_cannot_be_opened_is_left_out(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 4)  # 1-0, 2-0, 2-1, 3-0
    (folder / "3.png").write_text("no picture")
    learner = start()
    wait_for(lambda: learner.progress()["tested"] == 3 and not learner.progress()["doing"])
    assert learner.progress()["error"] == ""


@pytest.mark.parametrize("fault", ["load", "embed", "fit", "suggest"])
def test_a_fault_is_told_in_plain_words_and_later_votes_try_again(learning, caplog, fault):
    start, votes, folder = learning
    model = Brightness(fault)

    def load():
        model.check("load")
        return model

    learner = start(load=load)
    with Server(make_booth(folder, learner=learner)) as server:

        def vote() -> dict:
            key = server.state()["questions"][0]["key"]
            status, state = server.post("vote", key=key, answer="left")
            assert status == 200
            return state

        for count in (1, 2):
            assert vote()["votes"] == count
            assert wait_for(lambda: server.state()["learning"]["error"]) == PAUSED
        wait_for(lambda: "index 5 is out of bounds" in caplog.text)
        model.fail = ""
        assert vote()["votes"] == 3
        wait_for(lambda: not server.state()["learning"]["error"])
        learning = wait_for(
            lambda: server.state()["learning"]["tested"] == 3 and learner.progress()
        )
        assert learning["error"] == "" and model.fits[-1] == 3
        assert wait_for(lambda: learner.suggest((), 0))
    logged = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(logged) == 1, "what happens again and again is logged once"


def test_a_fault_after_a_success_keeps_what_is_known(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 4)
    model = Brightness()
    learner = start(model)
    wait_for(lambda: learner.progress()["tested"] == 4 and learner.suggest((), 0))
    model.fail = "fit"
    vote_for_brighter(votes, folder, 1)
    learner.votes_changed()
    wait_for(lambda: learner.progress()["error"])
    assert learner.progress()["tested"] == 4 and learner.suggest((), 0)
    model.fail = ""
    vote_for_brighter(votes, folder, 1)
    learner.votes_changed()
    wait_for(lambda: learner.progress()["tested"] == 6 and not learner.progress()["error"])


def test_a_picture_that_breaks_the_model_does_not_keep_it_from_learning(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 4)  # 1-0, 2-0, 2-1, 3-0

    class Choosy(Brightness):
        def embed(self, paths):
            if folder / "3.png" in paths:
                raise RuntimeError("CUDA error")
            return super().embed(paths)

    learner = start(Choosy())
    wait_for(lambda: learner.progress()["tested"] == 3 and not learner.progress()["doing"])
    assert learner.progress()["error"] == ""


def test_a_file_of_votes_that_cannot_be_read_just_now_is_read_later(learning, monkeypatch):
    start, votes, folder = learning

    def locked(*_):
        raise OSError("the file of votes: database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(votes, "history", locked)
        learner = start()
        assert wait_for(lambda: learner.progress()["error"]) == PAUSED
    vote_for_brighter(votes, folder, 2)
    learner.votes_changed()
    wait_for(lambda: learner.progress()["tested"] == 2 and not learner.progress()["error"])


def test_features_are_kept_once_as_float32_whatever_is_added():
    features = Features(5)
    assert features.x.shape == (0, 0)
    features.add([Path("a"), Path("b")], torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double())
    before = features.x
    features.add([Path("c")], torch.tensor([[5.0, 6.0]]))
    assert features.x.dtype == torch.float32 and features.x.data_ptr() == before.data_ptr()
    assert features.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert features.row == {Path("a"): 0, Path("b"): 1, Path("c"): 2}


def test_suggestions_are_made_without_a_copy_of_the_features(learning):
    start, votes, folder = learning
    vote_for_brighter(votes, folder, 1)
    seen = []

    class Watched(Brightness):
        def suggest(self, x, pairs, p, w):
            seen.append((x.data_ptr(), len(x), pairs.tolist()))
            return super().suggest(x, pairs, p, w)

    learner = start(Watched())
    wait_for(lambda: learner.suggest((), 0) and len(seen) > 1)
    assert len({place for place, *_ in seen}) == 1
    assert [n for _, n, _ in seen] == [2, N] and seen[1][2] == [[0, 1]]


def test_no_vote_waits_for_the_learner(learning):
    start, votes, folder = learning
    goes_on = threading.Event()

    class Slow(Brightness):
        def fit(self, x, pairs, p):
            goes_on.wait(30)
            return super().fit(x, pairs, p)

    learner = start(Slow())
    try:
        with Server(make_booth(folder, learner=learner)) as server:
            for i in range(5):
                key = server.state()["questions"][0]["key"]
                assert server.post("vote", key=key, answer="left")[1]["votes"] == i + 1
            assert server.state()["learning"]["tested"] == 0
            goes_on.set()
            wait_for(lambda: server.state()["learning"]["tested"] == 5)
    finally:
        goes_on.set()


def test_the_interval_is_wilsons():
    votes = [Vote(str(i), "", None, None, "left", 0.0, "random", None) for i in range(10)]
    found = measure(votes, {str(i): Guess(1 if i < 8 else -1, 0) for i in range(10)})
    low, high = found["low"], found["high"]  # by hand: 0.4902, 0.9433
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    none = measure([], {})
    assert (none["accuracy"], none["low"], none["high"]) == (0.5, 0.0, 1.0)
