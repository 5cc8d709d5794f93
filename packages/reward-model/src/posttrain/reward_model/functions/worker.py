"""The process in which a user's reward function runs: `python -m …functions.worker FD PARENT MIB`.

It takes the function over the socket FD, says whether it could be loaded, then answers each item of each list that it
is sent with `{"score": …}` or `{"error": …}`. It ends with its service, whatever that dies of, and goes first when
memory runs out. An error tells the kind and the line, never the message: that may repeat the item.
"""

import math
import numbers
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.process import die_with_parent
from posttrain.reward_model.functions.channel import Channel
from posttrain.reward_model.functions.loading import Reward, load_function
from posttrain.reward_model.functions.spec import UserFunction

MIB = 1 << 20


def main(descriptor: int, parent: int, memory_mib: int) -> None:
    """Serves the channel until the other end is closed."""
    die_with_parent(parent, signal.SIGKILL)
    _outlive_sigterm()
    _limit_memory(memory_mib)
    # What a function prints belongs to the service's log, not to what a caller of the service may read.
    os.dup2(2, 1)
    channel = Channel(socket.socket(fileno=descriptor))
    wanted = UserFunction(**channel.receive())
    try:
        function = load_function(wanted)
    except RequestError as error:
        channel.send({"error": str(error)})
        return
    channel.send({})
    while True:
        for item in channel.receive():
            channel.send(score(function, wanted.path, item))


def score(function: Reward, path: str, item: list[Any]) -> dict[str, Any]:
    """`{"score": finite float}`, or `{"error": what is wrong}`, of one item `[prompt, completion, reference]`."""
    try:
        value = function(*item)
        if not isinstance(value, numbers.Real):
            return {"error": f"it returned a {type(value).__name__}, not a number"}
        number = float(value)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is this item's failure
        return {"error": f"it raised {type(error).__name__}{_line(error, path)}"}
    return {"score": number} if math.isfinite(number) else {"error": f"it returned {number}, which is not finite"}


def _line(error: BaseException, path: str) -> str:
    """Where in the user's file an error came from, as far as it did."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if path and frame.filename == path]
    return f" at {Path(path).name}:{lines[-1]}" if lines else ""


def _outlive_sigterm() -> None:
    """BentoML's supervisor sends it to the service and to its processes alike, and the service still answers what is in
    flight: it is the service that ends this process. Not for what the function starts."""
    process = os.getpid()

    def here_only(number: int, _: object) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, here_only)


def _limit_memory(mib: int) -> None:
    with suppress(OSError):  # there is none outside Linux
        Path("/proc/self/oom_score_adj").write_text("1000")
    if mib:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (mib * MIB, mib * MIB))


if __name__ == "__main__":
    with suppress(EOFError):
        main(*map(int, sys.argv[1:4]))
    # A thread that the function left behind must not keep the process.
    os._exit(0)
