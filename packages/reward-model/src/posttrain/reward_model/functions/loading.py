"""Loads a user's reward function: runs its file, or imports its package. Only where a hang or a crash costs nothing.

That is in a worker process, and in the command line before it becomes the service.
"""

import inspect
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

from posttrain.core.errors import RequestError, suggest
from posttrain.reward_model.functions.spec import GROUP, UserFunction

Reward = Callable[[Any, str, Any], float]


def load_function(wanted: UserFunction) -> Reward:
    """The function itself; RequestError says in one line why it cannot be had."""
    if wanted.entry_point:
        where = f"entry point '{wanted.name} = {wanted.entry_point}' of {GROUP}"
        try:
            loaded = EntryPoint(wanted.name, wanted.entry_point, GROUP).load()
        except (Exception, SystemExit) as error:
            raise RequestError(f"{where} cannot be loaded ({error}); fix or uninstall its package") from error
        return _check(where, loaded)
    module = _run_file(wanted)
    function = getattr(module, wanted.function, None)
    if function is None:
        own = (
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        )
        raise RequestError(
            f"source '{wanted.name}': {wanted.path} has no function '{wanted.function}' {suggest(wanted.function, own)}"
        )
    return _check(f"source '{wanted.name}': {wanted.path}:{wanted.function}", function)


def _run_file(wanted: UserFunction) -> ModuleType:
    module = ModuleType(f"posttrain_reward_{wanted.version[:12]}")
    module.__file__ = wanted.path
    # Where dataclasses and pickles look a module up.
    sys.modules[module.__name__] = module
    try:
        exec(compile(wanted.source, wanted.path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise RequestError(
            f"source '{wanted.name}': {wanted.path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _check(where: str, function: Any) -> Reward:
    if not callable(function):
        raise RequestError(f"{where} is not a function (prompt, completion, reference) -> float")
    try:
        inspect.signature(function).bind("prompt", "completion", None)
    except TypeError:
        raise RequestError(f"{where} must take three arguments: prompt, completion, reference") from None
    return function
