"""Keys from the environment: in a variable, or in a file that a second variable names.

Docker and Kubernetes hand secrets over as files, so that they stand in no description of a container and in no
process's environment. Keys are read when a service or a client starts; no message repeats one.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from posttrain.core.errors import RequestError
from posttrain.core.serving import is_loopback

SERVICE_KEY = "POSTTRAIN_API_KEY"
"""The variable with the key that this project's services and their clients share."""


def file_variable(variable: str) -> str:
    """The variable that names the file with the key of `variable`: POSTTRAIN_API_KEY_FILE."""
    return f"{variable}_FILE"


def read_key(variable: str) -> str | None:
    """The key in `variable`, or in the file that `variable`_FILE names, without white space around it; None where both
    are unset or empty.

    RequestError where both are set, the file cannot be read or is empty, or what is there is no key: one word of
    printable ASCII, which is what a header can carry.
    """
    told, named = os.environ.get(variable), os.environ.get(file_variable(variable))
    if not named:
        return _checked(told, variable) if told else None
    if told:
        raise RequestError(f"{variable} and {file_variable(variable)} are both set; unset one of them")
    where = f"{file_variable(variable)} names {named}"
    try:
        found = Path(named).read_bytes()
    except OSError as error:
        raise RequestError(f"{where}, which cannot be read ({error.strerror}); put the key into that file") from None
    if not found.strip():
        raise RequestError(f"{where}, which is empty; put the key into it")
    return _checked(found.decode("latin-1"), f"{where}, which")


def _checked(text: str, where: str) -> str:
    key = text.strip()
    if not re.fullmatch("[!-~]+", key):
        raise RequestError(f"{where} holds no key: one is a single word of printable ASCII")
    return key


def without_key(environment: Mapping[str, str], variable: str = SERVICE_KEY) -> dict[str, str]:
    """An environment for a process that is to have neither the key nor the way to it."""
    return {name: value for name, value in environment.items() if name not in (variable, file_variable(variable))}


def warn_without_key(host: str) -> None:
    """Says on standard error that a service which listens on `host` answers this machine only, where it has no key;
    RequestError where the key cannot be read."""
    if read_key(SERVICE_KEY) is None and not is_loopback(host):
        print(f"warning: {SERVICE_KEY} is not set, so only requests from this machine are answered", file=sys.stderr)
