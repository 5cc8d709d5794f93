"""Keeps lm-eval's own talk away from a person's terminal, and gives everything back afterwards."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

_LOGGERS = ("lm_eval", "transformers", "datasets", "httpx", "nltk")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block loggers tell errors only and tqdm draws nothing; both are as before after it."""
    import datasets
    from tqdm import tqdm

    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    draw: Any = tqdm.__init__
    bars = datasets.are_progress_bars_disabled()
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    tqdm.__init__ = partialmethod(draw, disable=True)  # type: ignore[method-assign, assignment]
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        tqdm.__init__ = draw  # type: ignore[method-assign]
        if not bars:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
