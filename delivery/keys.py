"""The keys of docker/compose.yaml's services: files in a folder that git and the images leave out.

The services' own key is drawn at random where there is none; the one for OpenAI's judges is taken from OPENAI_API_KEY,
or stays empty until that is set. Nothing here prints a key.
"""

import os
import secrets
from pathlib import Path

from posttrain.core.errors import RequestError, WorkError

OWN_KEY = "posttrain_api_key"
OPENAI_KEY = "openai_api_key"
FOLDER_MODE, FILE_MODE = 0o700, 0o644
"""Compose binds the files as they are, and the containers' users are none of this machine's: they must be able to read
the file. The folder keeps everybody else here from it."""


def make_keys(folder: Path) -> list[Path]:
    """Makes the files that are missing, gives those that it made. A key that is there stays as it is.

    RequestError for one that the containers could not read, WorkError where nothing can be written.
    """
    made = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(FOLDER_MODE)
        own, openai = folder / OWN_KEY, folder / OPENAI_KEY
        if not own.exists() or not own.read_bytes().strip():
            _write(own, secrets.token_hex(32))
            made.append(own)
        given = os.environ.get("OPENAI_API_KEY", "")
        if not openai.exists() or (given and not openai.read_bytes().strip()):
            _write(openai, given)
            made.append(openai)
    except OSError as error:
        raise WorkError(f"cannot write keys in {folder}: {error.strerror}") from None
    for path in (own, openai):
        if not path.stat().st_mode & 0o004:
            raise RequestError(f"{path} cannot be read in a container, whose user is another: chmod 644 {path}")
    return made


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and never longer in anybody's reach than the folder lets it be."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "w") as file:
        os.fchmod(file.fileno(), FILE_MODE)  # whatever the umask
        file.write(f"{text}\n" if text else "")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
