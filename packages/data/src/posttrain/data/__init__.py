"""Sources, chat rendering, the nano corpora, tokenizer and base checkpoint."""

__version__ = "0.1.0"
