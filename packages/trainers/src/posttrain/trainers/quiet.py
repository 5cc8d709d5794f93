"""Keeps the bars and advice of the libraries off a screen that has a progress line of its own."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import datasets
import transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the bars and advice of transformers, TRL and datasets, and puts their settings back."""
    logging = transformers.utils.logging
    verbosity, loading_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    data_bars = not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if loading_bars:
            logging.enable_progress_bar()
        if data_bars:
            datasets.enable_progress_bars()
