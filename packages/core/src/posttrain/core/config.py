"""Settings typed once: strict pydantic classes, YAML, and `--set key=value`.

An unknown key or a value of the wrong kind is a RequestError that names the key's full path, the value and the
nearest known key. Defaults live in the classes and nowhere else.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from posttrain.core.errors import RequestError, suggest


class Settings(BaseModel):
    """Base of every settings class: unknown keys and numbers that are not finite are refused, instances cannot
    change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how the work is done (how often state is saved), never its result: not in config_hash."""

    def definition(self) -> dict[str, Any]:
        """What these settings contribute to a config hash: every field but the operational ones, as JSON."""
        return self.model_dump(mode="json", exclude=set(self.OPERATIONAL))


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; RequestError when it cannot be read, is malformed or holds no mapping."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise RequestError(f"{path} must hold a mapping of settings, not {type(value).__name__}")
    return value


def parse_overrides(overrides: Iterable[str]) -> list[tuple[list[str], Any]]:
    """`["ppo.steps=3"]` to `[(["ppo", "steps"], 3)]`; values are read as YAML."""
    parsed = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RequestError(f"--set takes key=value, not '{override}' (for example --set ppo.steps=10)")
        try:
            parsed.append((key.split("."), yaml.safe_load(text)))
        except yaml.YAMLError:
            raise RequestError(f"--set {key}: '{text}' is not a YAML value; quote it") from None
    return parsed


def apply_overrides(mapping: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `mapping` with each dotted `key=value` put in; missing sections are created, typos fail validation."""
    result: dict[str, Any] = _apart(mapping)
    for keys, value in parse_overrides(overrides):
        place = result
        for depth, key in enumerate(keys[:-1], start=1):
            inner = place.setdefault(key, {})
            if inner is None:
                inner = place[key] = {}
            if not isinstance(inner, dict):
                path = ".".join(keys[:depth])
                raise RequestError(f"--set {'.'.join(keys)}: '{path}' is a value ({inner!r}), not a section")
            place = inner
        place[keys[-1]] = value
    return result


def _apart(value: Any) -> Any:
    """A copy in which no section is another one too, as a YAML alias makes them: an override is for its own alone."""
    if isinstance(value, Mapping):
        return {key: _apart(inner) for key, inner in value.items()}
    return [_apart(inner) for inner in value] if isinstance(value, list) else deepcopy(value)


def validate(cls: type[SettingsT], mapping: Any, where: str) -> SettingsT:
    """An instance of `cls`, or one RequestError that starts with `where` and names the first offending key."""
    try:
        return cls.model_validate(mapping)
    except ValidationError as error:
        raise RequestError(f"{where}: {_first_problem(cls, error)}") from None


def _first_problem(cls: type[BaseModel], error: ValidationError) -> str:
    details = error.errors()
    # An unknown key explains a missing one more often than the other way round, so it is told first.
    first = next((d for d in details if d["type"] == "extra_forbidden"), details[0])
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, first["loc"][:-1])
        return f"unknown key '{path}' {suggest(str(first['loc'][-1]), known)}"
    if first["type"] == "missing":
        return f"'{path}' is missing; set it"
    message = first["msg"].removeprefix("Value error, ")
    shown = repr(first["input"])
    return f"'{path}' {message[0].lower()}{message[1:]} (it is {shown[:80]})" if path else message


def _fields_at(cls: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the settings class at `loc` under `cls` knows."""
    for part in loc:
        field = cls.model_fields.get(str(part)) if isinstance(cls, type) and issubclass(cls, BaseModel) else None
        if field is None:
            continue
        cls = next((c for c in _classes(field.annotation)), cls)
    return list(cls.model_fields)


def _classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [c for argument in getattr(annotation, "__args__", ()) for c in _classes(argument)]
