"""Judgements on the disk, and which process asks for which of them."""

from posttrain.llm_judge.store.store import DEFAULT_STORE, JudgeTotals, Store

__all__ = ["DEFAULT_STORE", "JudgeTotals", "Store"]
