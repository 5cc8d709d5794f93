"""Looks around inside an image: what is installed, who it runs as, what lies there that should not.

`SURVEY` runs in the image with its own Python and prints one JSON object. What is said about that afterwards are pure
functions. Sizes are counted as `python -m delivery sizes` counts them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

SURVEY = r"""
import json, os, pathlib, shutil, sys
from importlib.metadata import distributions

def files():
    for top in ("/etc", "/home", "/models", "/opt", "/root", "/srv", "/tmp", "/usr", "/var", "/data"):
        for folder, folders, names in os.walk(top, onerror=lambda error: None):
            yield from (os.path.join(folder, name) for name in names)

def writable():
    folders = "/ /etc /opt /opt/posttrain /usr /usr/local /var /root /models /data /tmp".split()
    return [folder for folder in folders if os.access(folder, os.W_OK)]

def has(*programs):
    return [name for name in programs if shutil.which(name)]

def ours(path):
    return "/site-packages/posttrain/" in path if "/site-packages/" in path else "posttrain" in path

SECRET = (".pem", ".key", ".env", "id_rsa", ".netrc", ".pypirc")
paths = list(files())
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "prefix": sys.prefix, "cwd": os.getcwd(),
    "distributions": {found.metadata["Name"]: found.version for found in distributions()},
    "writable": writable(),
    "compilers": has("gcc", "g++", "cc", "c++", "clang", "ld", "make", "git"),
    "kernels": sorted(path.name for path in pathlib.Path(os.environ.get("POSTTRAIN_KERNELS") or "/none").glob("*.so")),
    "ours": [path for path in paths if ours(path)],
    "keys": [path for path in paths if path.endswith(SECRET)],
    "caches": [path for path in paths if "/.cache/" in path or path.startswith("/var/lib/apt/lists/")],
}))
"""


def pins(constraints: str) -> dict[str, str]:
    """Canonical name to version, of a file of constraints."""
    lines = (line.split("#")[0].strip() for line in constraints.splitlines())
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def not_pinned(distributions: Mapping[str, str], pinned: Mapping[str, str]) -> dict[str, str]:
    """What is installed otherwise than pinned, or is not pinned at all; this project's own packages and local suffixes
    of versions (`+cpu`) aside."""
    others = {canonical(name): version.partition("+")[0] for name, version in distributions.items()}
    return {
        name: version
        for name, version in others.items()
        if not name.startswith("posttrain-") and pinned.get(name) != version
    }


def own(distributions: Mapping[str, str]) -> dict[str, str]:
    """This project's packages among what is installed."""
    named = {canonical(name): version for name, version in distributions.items()}
    return {name: version for name, version in named.items() if name.startswith("posttrain-")}


def secrets(environment: Iterable[str]) -> list[str]:
    """Variables of an image whose name promises a secret and that have a value; those that name files may."""
    named = re.compile(r"(API_?KEY|ACCESS_KEY|TOKEN|SECRET|PASSWORD)[^=]*=.")
    return [line.partition("=")[0] for line in environment if named.search(line) and "_FILE=" not in line]


def keys_among(paths: Iterable[str]) -> list[str]:
    """What looks like a private key or a file of secrets: not the certificates of authorities, which are public, nor
    what other projects ship for their own tests."""
    public = re.compile(r"^/etc/ssl/certs/|^/usr/lib/ssl/cert\.pem$|/cacert\.pem$|/site-packages/.*/tests?/")
    return [path for path in paths if not public.search(path)]


def own_tests(paths: Iterable[str]) -> list[str]:
    """The tests of this project among these paths."""
    return [path for path in paths if re.search(r"/tests?/|/test_[^/]*\.py$|/conftest\.py$", path)]


def canonical(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def survey_of(output: str) -> dict[str, Any]:
    """What `SURVEY` printed, and after it delivery's `COUNT`; whatever the container said before is no JSON."""
    looked, counted = (json.loads(line) for line in output.strip().splitlines()[-2:])
    return {**looked, "bytes": counted["bytes"]}
