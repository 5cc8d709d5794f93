"""The generation engine and the policy service."""

__version__ = "0.1.0"
