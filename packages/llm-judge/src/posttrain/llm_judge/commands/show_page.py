"""One pair of a record for people: the prompt, both answers side by side, and what the judge said in each order."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from posttrain.llm_judge.commands.show_selection import Pair
from posttrain.llm_judge.comparisons import Order
from posttrain.llm_judge.exchange import Judged
from posttrain.llm_judge.printable import printable

OUTCOMES = {"win": "B wins", "loss": "A wins", "tie": "a draw", "unparsed": "without a verdict"}
SHOWN = {"ab": "A shown first", "ba": "B shown first", "a": "A alone", "b": "B alone"}


def print_pair(console: Console, pair: Pair, number: int, of: int, record: Mapping[str, Any]) -> None:
    """Prints the `number`th of so many pairs."""
    console.print(Rule(_text(f"{number} of {of}: {_heading(pair)}"), align="left"))
    for role, text in _before(pair):
        console.print(Text(f"{role}: ", style="dim"), _text(text), sep="")
    asked, turns = pair.comparison, pair.game.turns
    table = Table(expand=True, show_lines=turns > 1)
    for letter, side, answers in (("A", record["a"], asked.answers_a), ("B", record["b"], asked.answers_b)):
        length = sum(map(len, answers[:turns]))
        table.add_column(_text(f"{letter}: {side['name']} ({length} characters)"), ratio=1, overflow="fold")
    for turn in range(turns):
        heading = Text(f"turn {turn + 1}: " if turns > 1 else "", style="dim")
        console.print(heading, _text(asked.questions[turn]), sep="")
        table.add_row(_text(asked.answers_a[turn]), _text(asked.answers_b[turn]))
    console.print(table)
    for order, judged in pair.judged:
        console.print(_said(order, judged))


def _text(text: str) -> Text:
    return Text(printable(text))


def _heading(pair: Pair) -> str:
    asked = pair.comparison
    parts = [asked.prompt_id, asked.category, f"turn {pair.game.turns}" if len(asked.questions) > 1 else None]
    parts += [f"opinion {pair.game.replicate + 1}" if pair.game.replicate else None, OUTCOMES[pair.outcome]]
    if pair.contradicts_itself:
        parts.append("the orders disagree")
    if asked.human is not None:
        parts.append(f"people: {_whose(asked.human)}")
    return ", ".join(part for part in parts if part)


def _before(pair: Pair) -> list[tuple[str, str]]:
    asked = pair.comparison
    known = [("reference", asked.reference), ("rubric", asked.rubric)]
    history = [(message.role, message.content) for message in asked.history]
    return history + [(name, text) for name, text in known if text]


def _said(order: Order, judged: Judged) -> RenderableType:
    judgement, _ = judged
    decision, preference = judgement.decision, judgement.preference
    if decision.label is None:
        verdict = "no verdict"
    elif preference is None:
        verdict = f"grade {decision.value:g}"
    else:
        verdict = f"{_whose(preference)} (verdict {decision.label}, P(B is better) {preference:.3f})"
    return Panel(_text(decision.raw or "(nothing)"), title=_text(f"{SHOWN[order]}: {verdict}"), title_align="left")


def _whose(preference: float) -> str:
    return "B is better" if preference > 0.5 else "A is better" if preference < 0.5 else "neither is better"
