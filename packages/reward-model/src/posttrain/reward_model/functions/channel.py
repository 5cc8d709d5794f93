"""JSON values over a socket between the service and a worker: a line each, and never a wait without an end.

JSON rather than pickle: what a worker sends is read by the service, and a worker runs somebody's code.
"""

import json
import select
import socket
import time
from typing import Any

_PIECE = 1 << 16


class Silent(Exception):
    """Nothing came, or nothing was taken, within the time."""


class Channel:
    """One end. Every method raises EOFError when the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._rest = b""

    def send(self, value: Any, seconds: float | None = None) -> None:
        """Sends one value; Silent when the other side did not take it within `seconds`."""
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(json.dumps(value).encode() + b"\n")
        except TimeoutError:
            raise Silent from None
        except OSError:
            raise EOFError from None

    def receive(self, seconds: float | None = None) -> Any:
        """The next value; Silent when none has come after `seconds`."""
        until = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = None if until is None else max(0.0, until - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                raise Silent
            try:
                piece = self._socket.recv(_PIECE)
            except OSError:
                raise EOFError from None
            if not piece:
                raise EOFError
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
