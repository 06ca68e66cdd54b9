"""The folder of a personal scorer survives a kill at any moment: it holds the old one or the new one."""

import os
import sys

import pytest
import torch

from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import read_config
from tastemaker.scorers.personal import base_entry, head_state
from tastemaker.scorers.personal_files import (
    OURS,
    is_free,
    is_trained,
    is_unfinished,
    read_head,
    read_trained_on,
    write_personal,
    write_trained_on,
    write_tuned,
)

WRITES = ("open", "os.rename", "os.remove", "os.mkdir")


def write(folder, seed):
    weight, center = torch.randn(2, 128, generator=torch.Generator().manual_seed(seed))
    base = base_entry("nano", load_scorer("nano").card)
    config = {"tastemaker": "personal", "name": f"taste {seed}", "base": base}
    pictures = [bytes([seed, i] * 8) for i in range(3)]
    return write_personal(folder, config, head_state(weight, center, 1.0, 0.0), pictures)


def write_whole(folder, seed):
    """A nano whose weights were trained; a checkpoint of that lies in the folder."""
    scorer = load_scorer("nano")
    state = {name: tensor + 1e-4 * seed for name, tensor in scorer.state_dict().items()}
    (folder / "training").mkdir(parents=True, exist_ok=True)
    for name in ("best-1.safetensors", "checkpoint.safetensors"):
        (folder / "training" / name).write_bytes(b"")
    pictures = write_trained_on(folder, [bytes([seed, i] * 8) for i in range(3)])
    said = {"name": f"taste {seed}", "trained_on": pictures}
    write_tuned(folder, {**scorer.config, "personal": said}, state)


def killed(folder, seed, after, write=write):
    """Writes in a process that ends, as by kill -9, before its file operation number `after`."""
    child = os.fork()
    if child == 0:
        left = after

        def count(event, arguments):
            nonlocal left
            if event in WRITES and str(folder) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            write(folder, seed)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
def test_killed_at_any_moment_it_holds_the_old_one_or_the_new_one(tmp_path):
    folder, found = tmp_path / "taste", []
    for after in range(100):
        write(folder, 1)
        if not killed(folder, 2, after):
            break
        card = load_scorer(folder).card
        assert len(read_trained_on(folder)) == 3
        found.append((card.name, card.fingerprint_id))
    assert len(found) > 5 and found == sorted(found), (
        "the old one, and from some moment the new one"
    )
    assert len(set(found)) == 2
    write(folder, 1)
    config = write(folder, 3)
    kept = {"config.json", config["head"], config["trained_on"]}
    assert {path.name for path in folder.iterdir()} == kept, "what a kill left is cleared"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
@pytest.mark.parametrize(
    "old, new",
    [(write, write_whole), (write_whole, write), (write_whole, write_whole)],
    ids=["head to whole", "whole to head", "whole to whole"],
)
def test_a_kill_while_kinds_change_leaves_one_whole_scorer(tmp_path, old, new):
    prints, found = {}, []
    for seed, make in ((1, old), (2, new)):
        make(tmp_path / str(seed), seed)
        prints[f"taste {seed}"] = load_scorer(tmp_path / str(seed)).card.fingerprint_id
    folder = tmp_path / "taste"
    for after in range(100):
        old(folder, 1)
        if not killed(folder, 2, after, new):
            break
        assert is_trained(folder)
        card = load_scorer(folder).card
        assert card.fingerprint_id == prints[card.name], "never one's weights with the other's card"
        assert len(read_trained_on(folder)) == 3
        found.append(card.name)
    assert found == sorted(found) and set(found) == set(prints)
    kept = {p.name for p in folder.iterdir()}
    assert kept == {p.name for p in (tmp_path / "2").iterdir()} and not is_unfinished(folder)
    assert "model.safetensors" in kept if new is write_whole else "model.safetensors" not in kept


def test_only_a_runs_own_checkpoints_are_taken_for_unfinished_training(tmp_path):
    for name, inside in (("ours", "best-12.safetensors"), ("mine", "notes.txt")):
        (tmp_path / name / "training").mkdir(parents=True)
        (tmp_path / name / "training" / inside).write_text("")
    assert is_unfinished(tmp_path / "ours") and not is_unfinished(tmp_path / "mine")
    (tmp_path / "ours" / "config.json").write_text('{"tastemaker": "rali"}')
    assert not is_unfinished(tmp_path / "ours") and not is_trained(tmp_path / "ours")
    write(tmp_path / "mine", 1)
    assert (tmp_path / "mine" / "training" / "notes.txt").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork")
def test_killed_the_first_time_the_folder_is_free_or_whole(tmp_path):
    for after in range(100):
        folder = tmp_path / str(after)
        if not killed(folder, 1, after):
            break
        if not is_free(folder):
            assert load_scorer(folder).card.name == "taste 1"
    assert after > 5 and load_scorer(folder).card.name == "taste 1"


def test_other_files_stay(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("mine")
    assert not is_free(tmp_path)
    write(tmp_path, 2)
    assert (tmp_path / "notes.txt").read_text() == "mine" and not OURS.fullmatch("notes.txt")


@pytest.mark.parametrize("name", ["../secret.safetensors", "model.safetensors", 3, ""])
def test_a_head_outside_is_refused(tmp_path, name):
    config = write(tmp_path, 1)
    with pytest.raises(ValueError, match="names the head"):
        read_head(tmp_path, {**config, "head": name})


def test_what_is_missing_or_damaged_is_named(tmp_path):
    config = write(tmp_path, 1)
    (tmp_path / config["trained_on"]).write_text("0123\n")
    with pytest.raises(ValueError, match=f"{config['trained_on']} is no list of hashes"):
        read_trained_on(tmp_path)
    (tmp_path / config["head"]).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {config['head']}"):
        load_scorer(tmp_path)
    assert read_trained_on(tmp_path / "nowhere") == frozenset()
    assert read_config(tmp_path)["head"] == config["head"]
