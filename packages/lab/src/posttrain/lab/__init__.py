"""Recipes, the stage graph, the comparison table and the commands that run a whole experiment."""

__version__ = "0.1.0"
