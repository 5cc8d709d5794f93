"""OpenAssistant Conversations (Köpf et al. 2023): a tree of messages for each first prompt, one message a row.

Siblings answer the same message; people ranked them, 0 the best. A demonstration is one path a tree: at each message
the best child, up to the last answer. A preference is the children of one message of a prompter that have a rank.
Deleted messages, and what hangs below them, are left out.

`regroup` gives rows of our own shapes: `messages`; `prompt` and `completions`, best first; `prompt`, `chosen` and
`rejected`; `prompt`. Each has the first message's `id` (preferences: that of the message answered) and `lang`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.data.rows import Message

Node = Mapping[str, Any]
_COLUMNS = ("message_id", "parent_id", "role", "text")


def regroup(rows: Sequence[Node], wanted: str) -> list[dict[str, Any]]:
    """The trees of all messages as rows of the wanted kind, in the order of their first messages."""
    trees = _Trees(rows)
    make = {"conversation": trees.conversations, "prompt": trees.prompts, "pair": trees.pairs}
    return list(make.get(wanted, trees.rankings)())


class _Trees:
    def __init__(self, rows: Sequence[Node]) -> None:
        self.roots: list[Node] = []
        self.children: dict[str, list[Node]] = {}
        for row in rows:
            missing = [column for column in _COLUMNS if column not in row]
            if missing:
                raise RequestError(f"messages of trees need the columns {', '.join(_COLUMNS)}; {missing[0]} is missing")
            if row.get("deleted") or not row["text"]:
                continue
            if row["parent_id"] is None:
                self.roots.append(row)
            else:
                self.children.setdefault(row["parent_id"], []).append(row)

    def conversations(self) -> Iterator[dict[str, Any]]:
        for root in self.roots:
            path = [root]
            while below := self._best_first(path[-1]):
                path.append(below[0])
            yield {**_named(root), "messages": [_message(node) for node in path]}

    def prompts(self) -> Iterator[dict[str, Any]]:
        for root in self.roots:
            yield {**_named(root), "prompt": [_message(root)]}

    def rankings(self) -> Iterator[dict[str, Any]]:
        for root in self.roots:
            yield from self._rankings_below([root], root)

    def pairs(self) -> Iterator[dict[str, Any]]:
        for ranking in self.rankings():
            answers = ranking.pop("completions")
            yield {**ranking, "chosen": answers[0], "rejected": answers[-1]}

    def _rankings_below(self, path: list[Node], root: Node) -> Iterator[dict[str, Any]]:
        """Depth first, without recursion: some trees are deep."""
        waiting = [path]
        while waiting:
            path = waiting.pop()
            node = path[-1]
            ranked = [child for child in self._best_first(node) if child.get("rank") is not None]
            if node["role"] == "prompter" and len({child["rank"] for child in ranked}) > 1:
                by_rank = {child["rank"]: child["text"] for child in reversed(ranked)}
                yield {
                    "id": node["message_id"],
                    "lang": root.get("lang"),
                    "prompt": [_message(message) for message in path],
                    "completions": [by_rank[rank] for rank in sorted(by_rank)],
                }
            waiting += [[*path, child] for child in reversed(self.children.get(node["message_id"], []))]

    def _best_first(self, node: Node) -> list[Node]:
        """The children by rank; those without one behind, in the file's order."""
        below = self.children.get(node["message_id"], [])
        return sorted(below, key=lambda child: (child.get("rank") is None, child.get("rank") or 0))


def _named(root: Node) -> dict[str, Any]:
    return {"id": root["message_id"], "lang": root.get("lang")}


def _message(node: Node) -> Message:
    return {"role": "assistant" if node["role"] == "assistant" else "user", "content": node["text"]}
