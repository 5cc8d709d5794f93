"""Keeps lm-eval's own talk away from a person's terminal, and gives everything back afterwards."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOGGERS = ("lm_eval", "transformers", "datasets", "huggingface_hub", "httpx", "nltk")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block loggers tell errors only and tqdm draws nothing; both are as before after it."""
    import datasets
    import tqdm
    import transformers.utils.logging

    # transformers sets its own level when it is first asked; ask before saying otherwise.
    transformers.utils.logging.get_verbosity()
    bar: Any = tqdm.tqdm
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    draw: Any = bar.__init__
    bars = datasets.are_progress_bars_disabled()

    def draw_nothing(self: Any, *arguments: Any, **options: Any) -> None:
        draw(self, *arguments, **(options | {"disable": True}))

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    bar.__init__ = draw_nothing
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        bar.__init__ = draw
        if not bars:
            datasets.enable_progress_bars()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
