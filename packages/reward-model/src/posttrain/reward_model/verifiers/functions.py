"""A user's own reward: a function `(prompt, completion, reference) -> float` from a file or an installed package.

`path/to/file.py:function` is loaded from the file; its version is the file's digest and the function's name. An entry
point of group `posttrain.verifiers` names such a function, or a `Verifier`; its version is the distribution's. The
function runs in the service's process: load only what you trust.
"""

import importlib.util
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_file
from posttrain.reward_model.verifiers.base import Verifier

GROUP = "posttrain.verifiers"


def is_function_spec(spec: str) -> bool:
    """Whether `spec` has the form `file.py:function`."""
    path, colon, _ = spec.rpartition(":")
    return bool(colon) and path.endswith(".py")


def load_function(name: str, spec: str) -> Verifier:
    """The verifier `name` made of `path/to/file.py:function`; RequestError when that is no fit function."""
    path_text, _, function_name = spec.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise RequestError(f"source '{name}': {path} does not exist; give path/to/file.py:function")
    digest = digest_file(path)
    module_spec = importlib.util.spec_from_file_location(f"posttrain_verifier_{digest[:12]}", path)
    assert module_spec is not None  # a path that ends in .py always has a loader
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise RequestError(f"source '{name}': {path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if function is None:
        own = (
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        )
        raise RequestError(f"source '{name}': {path} has no function '{function_name}' {suggest(function_name, own)}")
    return Verifier(name, f"{digest}:{function_name}", check_function(f"source '{name}': {spec}", function))


def installed_verifiers() -> dict[str, Verifier]:
    """The verifiers that installed packages offer by entry points; RequestError names one that cannot be loaded."""
    found: dict[str, Verifier] = {}
    for entry in entry_points(group=GROUP):
        where = f"entry point '{entry.name} = {entry.value}' of {GROUP}"
        if entry.name in found:
            raise RequestError(f"{where} is offered by two packages; uninstall one")
        try:
            loaded = entry.load()
        except (ImportError, AttributeError) as error:
            raise RequestError(f"{where} cannot be loaded ({error}); fix or uninstall its package") from error
        version = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        if isinstance(loaded, Verifier):
            found[entry.name] = loaded
        else:
            found[entry.name] = Verifier(entry.name, version, check_function(where, loaded))
    return found


def check_function(where: str, function: Any) -> Callable[..., float]:
    """`function` itself when it can be called with prompt, completion and reference, else RequestError."""
    if not callable(function):
        raise RequestError(f"{where} is not a function (prompt, completion, reference) -> float")
    try:
        inspect.signature(function).bind("prompt", "completion", None)
    except TypeError:
        raise RequestError(f"{where} must take three arguments: prompt, completion, reference") from None
    return function
