"""Whose answers are judged: files of them, and models that are to answer."""
