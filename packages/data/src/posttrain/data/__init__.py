"""Sources, chat rendering, the nano corpora, tokenizer and base checkpoint."""

import os
from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("torch") is None:
    # transformers would say at every start that there is no torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
