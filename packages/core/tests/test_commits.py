"""The commit of the running code, as git says it."""

import subprocess
from pathlib import Path

import pytest

from posttrain.core import commits


def test_the_commit_is_gits_with_a_plus_where_files_differ():
    folder = Path(commits.__file__).parent
    head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("this is no clone")
    assert commits.git_commit() in (head.stdout.strip(), f"{head.stdout.strip()}+")


def test_code_that_no_clone_tracks_has_the_commit_that_its_image_names_or_none(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    someone = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    subprocess.run(["git", "-C", tmp_path, *someone, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    (tmp_path / "commits.py").write_text("")
    monkeypatch.setattr(commits, "__file__", str(tmp_path / "commits.py"))
    monkeypatch.delenv("POSTTRAIN_GIT_COMMIT", raising=False)
    assert commits.git_commit() is None
    monkeypatch.setenv("POSTTRAIN_GIT_COMMIT", "0123abc")
    assert commits.git_commit() == "0123abc"
    subprocess.run(["git", "-C", tmp_path, "add", "commits.py"], check=True)
    assert commits.git_commit() not in (None, "0123abc")
