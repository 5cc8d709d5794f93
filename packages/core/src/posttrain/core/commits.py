"""Which commit the running code is of: what every record holds beside its result."""

import os
import subprocess
from pathlib import Path

VARIABLE = "POSTTRAIN_GIT_COMMIT"
"""What an image of a commit says it was built from."""


def git_commit() -> str | None:
    """The commit that this code was checked out at, with `+` when the files differ from it. Outside a clone it is what
    POSTTRAIN_GIT_COMMIT says, which images set; without that None."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            command = ["git", "-C", str(folder), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # An installed wheel may lie inside some other repository: only files that it tracks count.
    if not commit or not git("ls-files", "--error-unmatch", __file__):
        return os.environ.get(VARIABLE) or None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
