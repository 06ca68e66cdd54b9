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
    read_head,
    read_trained_on,
    write_personal,
)

WRITES = ("open", "os.rename", "os.remove", "os.mkdir")


def write(folder, seed):
    weight, center = torch.randn(2, 128, generator=torch.Generator().manual_seed(seed))
    base = base_entry("nano", load_scorer("nano").card)
    config = {"tastemaker": "personal", "name": f"taste {seed}", "base": base}
    pictures = [bytes([seed, i] * 8) for i in range(3)]
    return write_personal(folder, config, head_state(weight, center, 1.0, 0.0), pictures)


def killed(folder, seed, after):
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
