"""`evaluate` and `agree`, on a scorer whose scores are known, and on nano and real pictures."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from cli_tools import Cli, flat_picture, staircase, start
from PIL import Image
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import cohen_kappa_score
from stub import Brightness
from test_cli_calibrate import Latent

from tastemaker.cli import agree, evaluate
from tastemaker.cli.demo import unseen_pictures
from tastemaker.cli.journal import Journal
from tastemaker.preferences.comparisons import Comparisons, write_comparisons
from tastemaker.preferences.metrics import pair_metrics
from tastemaker.preferences.votes import Votes


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """Intervals of a few draws: that they are right is tested elsewhere."""
    for command in (evaluate.command, agree.command):
        (rounds,) = (option for option in command.params if option.name == "rounds")
        monkeypatch.setattr(rounds, "default", 50)


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


@pytest.fixture
def latent(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"), Latent)


def greys(folder: Path, count: int = 12) -> list[Path]:
    return [flat_picture(folder / f"{i:02}.png", 20 * i) for i in range(count)]


def compared(paths: list[Path], count: int = 60, seed: int = 0, ties: float = 0.0):
    """Votes that mostly prefer the brighter one."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        i, j = rng.choice(len(paths), 2, replace=False)
        p = float(rng.random() < 1 / (1 + math.exp((j - i) / 3)))
        yield paths[i], paths[j], 0.5 if rng.random() < ties else p


def brightness(paths: list[Path]) -> dict[Path, float]:
    return dict(zip(paths, Brightness().score(paths).tolist(), strict=True))


def test_a_table_of_comparisons(latent, tmp_path):
    paths = greys(tmp_path / "in")
    rows = list(compared(paths, ties=0.1))
    write_comparisons(tmp_path / "p.csv", Comparisons.of(rows))
    found = json.loads(latent("evaluate", "nano", tmp_path / "p.csv", "--json").stdout)
    score = brightness(paths)
    expected = pair_metrics([score[a] - score[b] for a, b, _ in rows], [p for *_, p in rows])
    for name, value in expected.items():
        measured = found["metrics"][name]
        assert measured["value"] == pytest.approx(value, abs=1e-6)
        assert measured["low"] <= measured["value"] <= measured["high"]
    assert found["scorer"] == "latent" and (found["tau"], found["comparisons"]) == (1, 60)
    assert found["ties"] == sum(p == 0.5 for *_, p in rows)
    table = latent("evaluate", "nano", tmp_path / "p.csv").stdout
    assert "60 comparisons of 12 images" in table and "tau 1 (the scorer's own)" in table
    row = next(line for line in table.splitlines() if line.startswith("accuracy"))
    m = found["metrics"]["accuracy"]
    assert f"{m['value']:.4f}   {m['low']:.4f} to {m['high']:.4f}" in row


def test_the_part_set_apart_is_what_counts(run, tmp_path):
    dark, middle, bright = staircase(tmp_path / "in", 3)
    train = Comparisons.of([(dark, bright, 1), (dark, middle, 1)])
    test = Comparisons.of([(bright, dark, 1), (bright, middle, 1), (middle, dark, 1)])
    file = tmp_path / "p.json"
    write_comparisons(file, train, test)

    def accuracy(*more):
        found = json.loads(run("evaluate", "nano", file, "--json", "--tau", 1, *more).stdout)
        return found["metrics"]["accuracy"]["value"], found["comparisons"]

    assert accuracy() == accuracy("--part", "test") == (1, 3)
    assert accuracy("--part", "train") == (0, 2) and accuracy("--part", "all") == (0.6, 5)
    write_comparisons(file, train)
    assert accuracy() == (0, 2)
    error = run.error("evaluate", "nano", file, "--part", "test")
    assert "sets no comparisons apart for testing" in error


def test_tau_is_given_fitted_or_told_to_be_missing(run, tmp_path):
    paths = greys(tmp_path / "in")
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths, 200)))
    output = run("evaluate", "nano", tmp_path / "p.csv", "--tau", 0.25).stdout
    assert "tau 0.25 (as given)" in output
    fitted = json.loads(run("evaluate", "nano", tmp_path / "p.csv", "--json").stdout)
    assert fitted["tau"] == pytest.approx(3 * 20 / 255, rel=0.4)  # 3 steps of grey, as simulated
    assert fitted["tau_source"].startswith("fitted to these comparisons")
    never = Comparisons.of([(paths[1], paths[0], 1), (paths[2], paths[1], 1)])
    write_comparisons(tmp_path / "never.csv", never)
    found = json.loads(run("evaluate", "nano", tmp_path / "never.csv", "--json").stdout)
    assert found["tau"] is None and found["metrics"]["nll"]["value"] is None
    assert found["metrics"]["accuracy"]["value"] == 1
    assert "no tau: the comparisons never contradict" in run(
        "evaluate", "nano", tmp_path / "never.csv"
    ).stdout  # fmt: skip


def test_a_calibration_of_the_same_scorer_is_taken(run, tmp_path):
    paths = greys(tmp_path / "in")
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths, 200)))
    out = tmp_path / "r.json"
    run("calibrate", tmp_path / "in", "--scorer", "nano", "--pairs", tmp_path / "p.csv",
        "--out", out)  # fmt: skip
    output = run("evaluate", "nano", tmp_path / "p.csv", "--calibration", out).stdout
    tau = json.loads(out.read_text())["members"][0]["calibration"]["tau"]
    assert f"tau {tau:.6g} (r.json)" in output


def test_a_table_of_ratings(run, tmp_path):
    paths = greys(tmp_path / "in", 10)
    values = [3, 1, 2, 5, 4, 6, 9, 7, 8, 10]
    lines = [f"{path.name},{value}" for path, value in zip(paths, values, strict=True)]
    (tmp_path / "r.csv").write_text("\n".join(["image_name,MOS", *lines]))
    args = ("evaluate", "nano", tmp_path / "r.csv", "--root", tmp_path / "in")
    found = json.loads(run(*args, "--json").stdout)
    own = [20 * i for i in range(10)]
    assert found["metrics"]["srcc"]["value"] == pytest.approx(spearmanr(own, values).statistic)
    assert found["metrics"]["krcc"]["value"] == pytest.approx(kendalltau(own, values).statistic)
    assert found["metrics"]["plcc"]["value"] == pytest.approx(np.corrcoef(own, values)[0, 1])
    assert found["columns"] == ["image_name", "MOS"] and len(found["logistic"]) == 4
    table = run(*args, "--plots", tmp_path / "plots").stdout
    assert "10 images, 10 ratings (MOS of image_name)" in table
    assert table.count("\n") >= 7 and "plcc_logistic" in table
    with Image.open(tmp_path / "plots" / "ratings.png") as picture:
        assert picture.size == (900, 600)
    assert run(*args, "--lower-is-better", "--json").stdout != run(*args, "--json").stdout


def parts(folder: Path) -> tuple[Path, list[Path]]:
    """Ten pictures whose ratings are right in the test part alone, as KonIQ-10k's file has it."""
    paths = greys(folder / "in", 10)
    right = [i < 6 for i in range(10)]
    lines = [
        f"{path.name},{i if ok else -i},{'test' if ok else 'training'}"
        for i, (path, ok) in enumerate(zip(paths, right, strict=True))
    ]
    (folder / "r.csv").write_text("\n".join(["image_name,MOS,set", *lines]))
    return folder / "r.csv", paths


def test_a_part_of_the_ratings(run, tmp_path):
    file, paths = parts(tmp_path)
    journal = tmp_path / "j.sqlite"
    args = ("evaluate", "nano", file, "--root", tmp_path / "in", "--journal", journal)
    result = run(*args, "--where", "set=test")
    assert "6 images, 6 ratings (MOS of image_name)" in result.stdout and not result.stderr
    assert "selected: set=test; left out: 4 rows" in result.stdout
    with Journal(journal) as kept:
        assert {row.path for row in kept.all_rows()} == set(paths[:6])

    def srcc(part):
        found = json.loads(run(*args, "--json", "--where", f"set={part}").stdout)
        return found["metrics"]["srcc"]["value"], found["images"], found["rows_left_out"]

    # One journal for both parts: the scores of other pictures are in neither's numbers.
    assert srcc("test") == (pytest.approx(1), 6, 4)
    assert srcc("training") == (pytest.approx(-1), 4, 6)
    assert srcc("test") == (pytest.approx(1), 6, 4)


def test_a_split_that_nobody_chose_from_is_told(run, tmp_path):
    file, _ = parts(tmp_path)
    args = ("evaluate", "nano", file, "--root", tmp_path / "in")
    (warning,) = run(*args).stderr.splitlines()
    assert "r.csv has a column set, test (6), training (4), and all of it is taken" in warning
    assert "set is test (6), training (4)" in run.error(*args, "--where", "set=tests")
    assert "no column 'part' (columns: image_name, MOS, set)" in run.error(
        *args, "--where", "part=x"
    )
    assert "'test' is not COLUMN=VALUE" in run.usage_error(*args, "--where", "test")


def test_columns_that_nobody_knows_are_listed(run, tmp_path):
    greys(tmp_path, 2)
    (tmp_path / "r.csv").write_text("picture,quality\n00.png,1\n01.png,2\n")
    error = run.error("evaluate", "nano", tmp_path / "r.csv")
    assert "Give --image-column (columns: picture, quality; a file of comparisons has" in error
    output = run("evaluate", "nano", tmp_path / "r.csv", "--image-column", "picture",
                 "--score-column", "quality").stdout  # fmt: skip
    assert "2 images" in output


def test_what_is_odd_about_the_comparisons_is_told(run, tmp_path):
    paths = greys(tmp_path / "in", 5)
    rows = [*compared(paths, 20), (paths[0], paths[0], 1)]
    rows += [(paths[1], paths[2], 1), (paths[2], paths[1], 1)]
    write_comparisons(tmp_path / "p.csv", Comparisons.of(rows))
    result = run("evaluate", "nano", tmp_path / "p.csv", "--tau", 1)
    assert "Warning: compared with itself (1): " in result.stderr
    assert "Warning: contradictory, each preferred once (" in result.stderr
    assert "22 comparisons of 5 images" in result.stdout
    write_comparisons(tmp_path / "p.csv", Comparisons.of([(paths[0], paths[0], 1)]))
    assert "no comparison of two different" in run.error("evaluate", "nano", tmp_path / "p.csv")


def test_rows_without_a_rating_are_counted(run, tmp_path):
    paths = greys(tmp_path / "in", 5)
    lines = [f"{path},{i}" for i, path in enumerate(paths)]
    lines[1:3] = [f"{paths[1]},", f"{paths[2]},NaN"]
    (tmp_path / "r.csv").write_text("\n".join(["image,mos", *lines]))
    result = run("evaluate", "nano", tmp_path / "r.csv")
    assert "3 images, 3 ratings" in result.stdout
    assert "left out: 2 rows without a rating" in result.stdout
    assert "nan" not in result.stdout and " -  " in result.stdout  # no curve of three


def test_what_cannot_be_scored_is_told_and_counted(run, tmp_path):
    paths = greys(tmp_path / "in", 5)
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    rows = [*compared(paths, 20), (paths[0], tmp_path / "in" / "broken.png", 1)]
    rows.append((paths[0], tmp_path / "in" / "gone.png", 1))
    write_comparisons(tmp_path / "p.csv", Comparisons.of(rows))
    result = run("evaluate", "nano", tmp_path / "p.csv", "--tau", 1)
    assert "no files: 1 image, such as" in result.stderr and "gone.png" in result.stderr
    assert "1 have no score, such as not a picture" in result.stderr
    assert "left out: 2 comparisons" in result.stdout
    write_comparisons(tmp_path / "p.csv", Comparisons.of([(tmp_path / "a", tmp_path / "b", 1)]))
    assert "none of 2 images is a file" in run.error("evaluate", "nano", tmp_path / "p.csv")


def test_scores_are_kept_and_a_run_goes_on(run, tmp_path, monkeypatch):
    paths = greys(tmp_path / "in")
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths)))
    journal = tmp_path / "j.sqlite"
    command = ["evaluate", "nano", tmp_path / "p.csv", "--tau", 1, "--journal", journal]

    class Stops(Brightness):
        default_batch_size = 1

        def score_prepared(self, x):
            if len(self.batches) == 5:
                raise KeyboardInterrupt
            return super().score_prepared(x)

    with monkeypatch.context() as patch:
        patch.setattr("tastemaker.scorers.load_scorer", lambda *_, **__: Stops())
        stopped = run(*command, code=1)
    assert "the same command goes on" in stopped.stderr
    with Journal(journal) as kept:
        before = {row.path for row in kept.all_rows()}
    assert 0 < len(before) < len(paths)
    output = run(*command).stdout
    with Journal(journal) as kept:
        assert {row.path for row in kept.all_rows()} == set(paths)
    assert run(*command).stdout == output


SLOW = """
import time
from stub import Brightness
class scorer(Brightness):
    default_batch_size = 1
    def score_prepared(self, x):
        time.sleep(0.7)
        return super().score_prepared(x)
"""


@pytest.mark.slow
def test_a_kill_loses_nothing(tmp_path):
    paths = greys(tmp_path / "in")
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths)))
    journal = tmp_path / "j.sqlite"
    command = ["evaluate", "nano", tmp_path / "p.csv", "--tau", 1, "--journal", journal]
    process = start(command, tmp_path / "home", SLOW)
    while process.poll() is None:
        if journal.exists():
            try:
                with Journal(journal) as kept:
                    if len(list(kept.all_rows())) >= 2:
                        process.kill()
                        break
            except ValueError:  # being made
                pass
    process.communicate()
    with Journal(journal) as kept:
        assert 2 <= len(list(kept.all_rows())) < len(paths)
    again = start(command, tmp_path / "home")
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "60 comparisons of 12 images" in output, errors


def test_plots_and_robustness(latent, tmp_path):
    paths = greys(tmp_path / "in")
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths, 80)))
    result = latent("evaluate", "nano", tmp_path / "p.csv", "--plots", tmp_path / "plots",
                    "--robustness", "--robustness-images", 5)  # fmt: skip
    assert {p.name for p in (tmp_path / "plots").glob("*.png")} == {
        "accuracy_by_difference.png", "calibration.png", "risk_coverage.png",
    }  # fmt: skip
    assert "robustness: 0 of 5 (jpeg), 5 of 5 (low_resolution)" in result.stdout
    # A flat picture has nothing to lose: it scores the same, which is not higher.
    row = next(x for x in result.stdout.splitlines() if x.startswith("low_resolution"))
    assert row.split()[1] == "0.0000"
    # What is drawn is no picture to be judged.
    assert "12 images" in latent("score", tmp_path).stdout
    few = tmp_path / "few.csv"
    write_comparisons(few, Comparisons.of(compared(paths, 5)))
    assert "no plots" in latent("evaluate", "nano", few, "--plots", tmp_path / "none").stdout


def test_options_of_the_other_kind_are_refused(run, tmp_path):
    paths = greys(tmp_path / "in", 3)
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths, 5)))
    (tmp_path / "r.csv").write_text("image,score\nin/00.png,1\n")
    pairs, ratings = (
        ("evaluate", "nano", tmp_path / "p.csv"),
        ("evaluate", "nano", tmp_path / "r.csv"),
    )
    assert "--root goes with a file of ratings" in run.usage_error(*pairs, "--root", tmp_path)
    assert "--where goes with a file of ratings" in run.usage_error(*pairs, "--where", "a=b")
    assert "--tau goes with a file of comparisons" in run.usage_error(*ratings, "--tau", 1)
    assert "--part goes with a file of comp" in run.usage_error(*ratings, "--part", "all")
    both = ("--tau", 1, "--calibration", tmp_path / "r.csv")
    assert "give one of --tau" in run.usage_error(*pairs, *both)
    assert "--voter goes with a store of votes" in run.error(*pairs, "--voter", "me")


def test_a_scorer_and_its_task(run, tmp_path):
    paths = greys(tmp_path / "in", 3)
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths, 5)))
    run("evaluate", "q-realign-mini=aesthetics", tmp_path / "p.csv", "--tau", 1, "--device", "cpu")
    (name, how), *_ = run.loaded
    assert name == "q-realign-mini" or how["name_or_path"] == "q-realign-mini"
    assert how["task"] == "aesthetics" and how["device"] == "cpu"


@pytest.mark.slow
def test_nano_on_real_pictures(monkeypatch, tmp_path):
    """A voter who prefers the sharper one: nano agrees, and everything is there."""
    run, paths = Cli(monkeypatch, tmp_path / "home", None), []
    for i, path in enumerate(unseen_pictures()[:12]):
        with Image.open(path) as picture:
            sharp = picture.convert("RGB").resize((320, 320))
        for name, image in (("sharp", sharp), ("blurred", sharp.reduce(4).resize((320, 320)))):
            paths.append(tmp_path / f"{i}_{name}.png")
            image.save(paths[-1])
    votes = [(a, b, 1) for a, b in zip(paths[::2], paths[1::2], strict=True)]
    write_comparisons(tmp_path / "p.csv", Comparisons.of(votes))
    found = json.loads(run("evaluate", "nano", tmp_path / "p.csv", "--distance-by", "nano",
                           "--robustness", "--json").stdout)  # fmt: skip
    assert found["metrics"]["accuracy"]["value"] > 0.9
    assert found["by_distance"] and found["weighted"]["auc"]["value"] > 0.5
    assert found["robustness"]["low_resolution"]["value"] > 0.5


# agree


def votes_of(folder: Path, paths: list[Path], voters: dict[str, list[float]]) -> Path:
    """A store with the answers of each voter on neighbours."""
    answers = {1.0: "left", 0.5: "tie", 0.0: "right"}
    store = Votes(folder / "votes.db", paths[0].parent)
    for voter, ps in voters.items():
        for left, right, p in zip(paths, paths[1:], ps, strict=False):
            store.add(voter, left, right, answers[p])
    return folder / "votes.db"


def test_two_voters_of_a_store_and_a_scorer(run, tmp_path):
    paths = greys(tmp_path / "in", 9)
    anna, ben = [0, 0, 0, 0, 0, 1, 0.5, 0], [0, 0, 0, 1, 0, 1, 0, 0.5]
    store = votes_of(tmp_path, paths, {"anna": anna, "ben": ben})
    rows = json.loads(run("agree", "nano", store, "--json").stdout)
    found = {(row["a"], row["b"]): row for row in rows}
    assert len(found) == 3
    people = found["votes.db=anna", "votes.db=ben"]
    assert (people["shared"], people["decided"]) == (8, 6)
    assert people["agreement"]["value"] == pytest.approx(5 / 6)
    a, b = (np.array(x) * 2 for x in (anna, ben))
    assert people["kappa"]["value"] == pytest.approx(
        cohen_kappa_score(np.r_[a, 2 - a], np.r_[b, 2 - b])
    )
    # The scorer says the right one, which is brighter, each time.
    scorer = found["votes.db=anna", "nano"]
    assert scorer["agreement"]["value"] == pytest.approx(6 / 7) and scorer["decided"] == 7
    one = run("agree", f"{store}=ben", "nano").stdout
    assert "votes.db=ben and nano" in one and "0.714 (" in one


def test_files_are_known_by_contents_where_paths_differ(run, tmp_path):
    rows = {}
    for name in ("one", "two"):
        paths = greys(tmp_path / name / "in", 6)
        rows[name] = [(a, b, 0) for a, b in zip(paths, paths[1:], strict=False)]
        write_comparisons(tmp_path / name / "p.csv", Comparisons.of(rows[name]))
    files = [tmp_path / name / "p.csv" for name in rows]
    result = run("agree", *files, "nano")
    assert "known by their contents" in result.stderr
    lines = result.stdout.splitlines()[1:]
    assert len(lines) == 3 and all("1.000 (" in line for line in lines)
    assert lines[0].startswith("1: p.csv and 2: p.csv")


def test_pairs_in_common_that_are_too_few_give_no_numbers_but_a_line(run, tmp_path):
    paths = greys(tmp_path / "in", 10)
    voters = {"anna": [0] * 9, "ben": [1], "cleo": [0, 1] + [0.5] * 6, "dora": [0, 0, 0, 0, 1]}
    store = votes_of(tmp_path, paths, voters)
    result = run("agree", store)
    (warning,) = result.stderr.splitlines()
    assert "Too few pairs in common" in warning
    assert "votes.db=anna and votes.db=ben (1), votes.db=anna and votes.db=cleo (2)" in warning
    assert "votes.db=anna and votes.db=dora" not in warning
    rows = (line.split("  ", 1) for line in result.stdout.splitlines())
    lines = {name.removeprefix("votes.db="): cells.split() for name, cells in rows}
    assert lines["anna and votes.db=ben"] == ["1", "1", "-", "-", "-"]
    assert lines["anna and votes.db=cleo"][:4] == ["8", "2", "-", "0.125"], "ties are outcomes"
    assert lines["anna and votes.db=dora"][:3] == ["5", "5", "0.800"]
    assert "nan" not in result.stdout and "-1.000" not in result.stdout
    rows = json.loads(run("agree", store, "--json").stdout)
    (one,) = (row for row in rows if (row["a"], row["b"]) == ("votes.db=anna", "votes.db=ben"))
    assert (one["shared"], one["decided"]) == (1, 1)
    assert one["kappa"] == {"value": None, "low": None, "high": None} == one["agreement"]


def test_agree_needs_two_judges_and_a_voter(run, tmp_path):
    paths = greys(tmp_path / "in", 4)
    write_comparisons(tmp_path / "p.csv", Comparisons.of(compared(paths, 5)))
    other = [(paths[0], paths[1], 1)]
    write_comparisons(tmp_path / "apart.csv", Comparisons.of(other))
    alone = [(paths[2], paths[3], 1), (paths[1], paths[2], 1)]
    write_comparisons(tmp_path / "alone.csv", Comparisons.of(alone))
    assert "name a file of comparisons" in run.error("agree", "nano", "rali")
    assert "that is one judge" in run.error("agree", tmp_path / "p.csv")
    result = run("agree", tmp_path / "apart.csv", tmp_path / "alone.csv", code=1)
    assert "apart.csv and alone.csv: they share no comparison" in result.stderr
    assert "no two judges share a comparison" in result.stderr
    store = votes_of(tmp_path, paths, {"anna": [0, 0, 0]})
    assert "votes of: anna" in run.error("agree", f"{store}=ben", "nano")
    journal = ("--journal", tmp_path / "j.sqlite")
    assert "one journal holds one scorer" in run.usage_error(
        "agree", tmp_path / "p.csv", "nano", "rali", *journal
    )


def test_an_ensemble_and_a_journal_are_no_voters(run, tmp_path):
    from tastemaker.cli.judged import is_comparisons

    paths = greys(tmp_path / "in", 3)
    run("calibrate", tmp_path / "in", "--scorer", "nano", "--out", tmp_path / "r.json")
    run("score", tmp_path / "in", "--journal", tmp_path / "j.sqlite")
    run("score", tmp_path / "in", "--export", tmp_path / "s.csv")
    assert not any(is_comparisons(tmp_path / name) for name in ("r.json", "j.sqlite", "s.csv"))
    write_comparisons(tmp_path / "p.json", Comparisons.of([(paths[0], paths[1], 1)]))
    with open(tmp_path / "p.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["left", "right", "p"], ["a", "b", 1]])
    store = votes_of(tmp_path, paths, {"anna": [0, 1]})
    assert all(map(is_comparisons, (tmp_path / "p.json", tmp_path / "p.csv", store)))
