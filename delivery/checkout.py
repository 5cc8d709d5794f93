"""A clone as a release sees it: git's answers, or its own words as an error; a worktree that leaves nothing behind."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain.core.errors import RequestError, WorkError


def git(folder: Path, *arguments: str) -> str:
    """What git answers in a folder, without the newline at its end; WorkError with git's words where it fails."""
    done = run_git(folder, *arguments)
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())
        raise WorkError(f"git {arguments[0]} failed in {folder}: {words}")
    return done.stdout.rstrip("\n")


def run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs git in a folder, whatever repository the environment's variables name; the exit status is the caller's."""
    # Inside a git hook GIT_DIR and GIT_INDEX_FILE are set, and would lead a worktree's git to the wrong index.
    environment = {name: value for name, value in os.environ.items() if name not in _REDIRECTS}
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError:
        raise RequestError("git is not installed; a release is a commit and a tag") from None


_REDIRECTS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")


def checkout_root(folder: Path) -> Path:
    """The top of the clone that a folder lies in."""
    done = run_git(folder, "rev-parse", "--show-toplevel")
    if done.returncode != 0:
        raise RequestError(f"{folder.resolve()} is in no git repository; start it in a clone")
    return Path(done.stdout.strip())


def require_clean_main(root: Path) -> None:
    """RequestError unless the branch main is checked out and every file is as its commit has it."""
    branch = git(root, "branch", "--show-current")
    if branch != "main":
        raise RequestError(f"{f'branch {branch}' if branch else 'no branch'} is checked out; releases are made on main")
    changed = git(root, "status", "--porcelain").splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:3]) + (", …" if len(changed) > 3 else "")
        raise RequestError(f"{len(changed)} files are not as the last commit has them ({names}); commit or remove them")


@contextmanager
def detached_worktree(root: Path) -> Iterator[Path]:
    """A worktree of the current commit on no branch, removed at the end. No branch holds what is committed in it."""
    with tempfile.TemporaryDirectory(prefix="posttrain-release-") as folder:
        place = Path(folder) / "tree"
        git(root, "worktree", "add", "--quiet", "--detach", str(place), "HEAD")
        try:
            yield place
        finally:
            git(root, "worktree", "remove", "--force", str(place))
