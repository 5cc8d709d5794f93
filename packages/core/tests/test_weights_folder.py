"""Folders that a server reads weights from: they go with their process, or with the next one where it was killed."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from posttrain.core.weights_folder import LOCK, PREFIX, STALE_SECONDS, WeightsFolder, remove_stale_folders

MAKE_AND_WAIT = """
import sys, time
from posttrain.core.weights_folder import WeightsFolder
folder = WeightsFolder()
print(folder.name, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def aged(folder: Path) -> Path:
    """The folder, made a minute ago."""
    then = time.time() - STALE_SECONDS - 1
    os.utime(folder / LOCK, (then, then))
    return folder


def test_a_folder_can_be_read_by_others_and_goes_with_its_context(temporary):
    with WeightsFolder() as name:
        assert Path(name).parent == temporary
        assert Path(name).stat().st_mode & 0o777 == 0o755
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(temporary):
    process = subprocess.Popen([sys.executable, "-c", MAKE_AND_WAIT], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        of_another = aged(Path(process.stdout.readline().strip()))
        with WeightsFolder() as name:
            own = aged(Path(name))
            remove_stale_folders()
            assert {own, of_another} <= set(temporary.iterdir())
            process.send_signal(signal.SIGKILL)
            process.wait()
            remove_stale_folders()
            assert list(temporary.iterdir()) == [own]
    finally:
        process.kill()
        process.stdout.close()


def test_one_that_is_being_made_and_one_that_is_none_of_ours_are_left_alone(temporary):
    for name in (f"{PREFIX}new", "posttrain-weights-of-a-push", f"{PREFIX}without-a-lock"):
        (temporary / name).mkdir()
    (temporary / f"{PREFIX}new" / LOCK).touch()
    remove_stale_folders()
    assert len(list(temporary.iterdir())) == 3


def test_a_folder_of_somebody_else_is_left_alone(temporary, monkeypatch):
    folder = temporary / f"{PREFIX}theirs"
    folder.mkdir()
    (folder / LOCK).touch()
    aged(folder)
    with monkeypatch.context() as another:
        another.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        remove_stale_folders()
    assert folder.exists()
    remove_stale_folders()
    assert not folder.exists()
