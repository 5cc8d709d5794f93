"""The pairwise judge."""

__version__ = "0.1.0"
