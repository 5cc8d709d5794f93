"""Inspected rows for people: what has a loss in green, what has none in grey, what is cut in red.

Neighbouring tokens differ in shade, so that their borders show. Without colour each token with a loss stands in ⟦ ⟧ and
a mark says where a row is cut. Control characters of the data show as their codes: a terminal is not to obey them.
"""

import re
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from posttrain.lab.inspection import InspectedRow, summary, token_texts
from posttrain.lab.inspection_source import Inspected

_TRAINED = ("bold green", "bold bright_green")
_CONTEXT = ("grey50", "grey70")
_CUT = ("red strike", "bright_red strike")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tab and line break; and what turns the direction of the text behind it."""


def show(inspected: Inspected, count: int, title: str, console: Console) -> None:
    """Prints the first `count` rows and the summary over all of them."""
    colour = console.color_system is not None and not console.no_color
    for number, row in enumerate(inspected.rows[:count], start=1):
        console.rule(Text(_harmless(f"row {number}: {row.id}")), align="left", style="dim")
        for part_number, part in enumerate(row.parts):
            kept = row.kept if row.kept is not None else len(part.ids)
            texts = token_texts(inspected.tokenizer, part.ids)
            drawn = Text(f"{part.name}, {len(part.ids)} tokens: ", style="bold") if len(row.parts) > 1 else Text()
            for style, text in _tokens(texts, part.trained, kept, colour):
                drawn.append(text, style)
            console.print(drawn, soft_wrap=True, highlight=False)
            if part_number + 1 < len(row.parts):
                console.print()
        console.print(Text(_about(row)), style="dim", soft_wrap=True, highlight=False)
    for line in _summary(inspected, title):
        console.print(Text(line), soft_wrap=True, highlight=False)


def _tokens(texts: list[str], trained: list[bool], kept: int, colour: bool) -> Iterator[tuple[str, str]]:
    """(style, text) of each token."""
    for place, (text, spoken) in enumerate(zip(texts, trained, strict=True)):
        if place == kept and not colour:
            yield "", f"⟪cut at {kept}⟫"
        shades = _CUT if place >= kept else _TRAINED if spoken else _CONTEXT
        visible = _harmless(text).replace("\n", "⏎\n")
        yield shades[place % 2], f"⟦{visible}⟧" if spoken and not colour and place < kept else visible


def _harmless(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _about(row: InspectedRow) -> str:
    said = [f"{row.length} tokens" + (" with the longest answer" if len(row.parts) > 1 else "")]
    if row.end_trained is not None:
        said.append(f"{row.trained} of {row.tokens} trained")
        not_trained = "NOT trained, an answer was cut short" if row.cut_short else "NOT trained"
        said.append(f"the end token is {'trained' if row.end_trained else not_trained}")
    if row.dropped_by:
        said.append(f"too long for {', '.join(row.dropped_by)}")
    elif row.kept is not None and row.kept < row.length:
        said.append(f"cut to {row.kept}")
    if row.reference is not None:
        said.append(f"reference {row.reference!r}")
    return "; ".join(said)


def _summary(inspected: Inspected, title: str) -> Iterator[str]:
    told: dict[str, Any] = summary(inspected.rows, inspected.limits)
    tokens = told["tokens"]
    yield f"{title}: {told['rows']:,} rows looked at"
    yield f"tokens a row: mean {tokens['mean']:.0f}, median {tokens['median']:.0f}, longest {tokens['longest']:,}"
    for method, limit in told["limits"].items():
        dropped, cut = told["dropped"][method], told.get("cut", 0)
        also = f", {cut} cut" if method == "sft" else ""
        yield f"{method} takes {limit:,} tokens at most: {dropped} rows too long{also}"
    if "trained_share" in told:
        one = told["trained_share_of_a_row"]
        yield f"trained: {told['trained_share']:.0%} of all tokens, {one['least']:.0%} to {one['most']:.0%} of a row"
        end = inspected.tokenizer.eos_token
        yield f"end token {end}: trained in {told['end_trained']:,} of {told['rows']:,} rows"
