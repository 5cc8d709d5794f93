"""Where a user's own reward comes from, told without running any of it.

A function `(prompt, completion, reference) -> float` is `path/to/file.py:function`, whose version is the file's digest
and the function's name, or an entry point of group `posttrain.verifiers`, whose version is its distribution's. What
is described here is loaded and run by `posttrain.reward_model.functions.worker` only. A file is read once: however
often a worker is replaced, it runs the code that the version names.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from posttrain.core.errors import RequestError

GROUP = "posttrain.verifiers"


@dataclass(frozen=True)
class UserFunction:
    """A user's function: its name as a source, its version, and what a worker needs to load it.

    Of a file: `path` (for messages), `source` (its text) and `function`. Of a package: `entry_point`.
    """

    name: str
    version: str
    path: str = ""
    source: str = ""
    function: str = ""
    entry_point: str = ""


def is_function_spec(spec: str) -> bool:
    """Whether `spec` has the form `file.py:function`."""
    path, colon, _ = spec.rpartition(":")
    return bool(colon) and path.endswith(".py")


def function_of_file(name: str, spec: str) -> UserFunction:
    """The source `name` of `path/to/file.py:function`; RequestError when there is no such file."""
    path, _, function = spec.rpartition(":")
    try:
        data = Path(path).read_bytes()
        text = data.decode()
    except OSError as error:
        raise RequestError(
            f"source '{name}': {path} cannot be read ({error.strerror}); give path/to/file.py:function"
        ) from None
    except UnicodeDecodeError:
        raise RequestError(f"source '{name}': {path} is not UTF-8 text; give path/to/file.py:function") from None
    digest = hashlib.sha256(data).hexdigest()
    return UserFunction(name, f"{digest}:{function}", path=path, source=text, function=function)


def installed_functions() -> dict[str, UserFunction]:
    """The functions that installed packages offer by entry points; RequestError when two offer the same name."""
    found: dict[str, UserFunction] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in found:
            raise RequestError(
                f"entry point '{entry.name} = {entry.value}' of {GROUP} is offered by two packages; uninstall one"
            )
        version = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        found[entry.name] = UserFunction(entry.name, version, entry_point=entry.value)
    return found
