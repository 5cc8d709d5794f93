"""Ctrl-C and SIGTERM for work that ends in order: the first asks for it, the second insists."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_until_interrupted(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """The result of `work` in an event loop of its own. The first signal sets the event that it is given; a second one
    cancels it, and ends in KeyboardInterrupt."""

    async def main() -> T:
        interrupted = asyncio.Event()
        task = asyncio.ensure_future(work(interrupted))

        def signalled() -> None:
            if interrupted.is_set():
                task.cancel()
            interrupted.set()

        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, signalled)
        try:
            return await task
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
