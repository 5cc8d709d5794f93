"""docker/compose.yaml as compose reads it: variables filled in, anchors and merges resolved."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docker"
FILE = FOLDER / "compose.yaml"
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_]+)(?::?-(?P<default>[^}]*))?\}")


def interpolated(value: Any, environment: dict[str, str]) -> Any:
    """The value with every `${NAME:-default}` and `${NAME-default}` filled in.

    KeyError for a variable that is not set and has no default.
    """
    if isinstance(value, dict):
        return {name: interpolated(one, environment) for name, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, environment) for one in value]
    if not isinstance(value, str):
        return value

    def filled(found: re.Match[str]) -> str:
        name, default = found["name"], found["default"]
        # With the colon an empty variable is as good as none.
        if name in environment and (environment[name] or ":-" not in found[0]):
            return environment[name]
        return default if default is not None else environment[name]

    return _VARIABLE.sub(filled, value)


def compose_file(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The whole file under the variables of `environment`, and no others."""
    file: dict[str, Any] = interpolated(yaml.safe_load(FILE.read_text()), environment or {})
    return file


def command_of(service: dict[str, Any]) -> list[str]:
    """What follows the entry point."""
    command = service.get("command", [])
    return shlex.split(command) if isinstance(command, str) else command
