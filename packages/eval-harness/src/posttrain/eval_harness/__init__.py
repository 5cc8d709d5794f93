"""Evaluation through lm-eval: the nano tasks, per-item results, and the `posttrain eval` command."""

__version__ = "0.1.0"
