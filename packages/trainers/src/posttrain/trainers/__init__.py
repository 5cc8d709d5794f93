"""One file a method, pure losses, and the online loop."""

__version__ = "0.1.0"
