"""The record of a match for people: the rate with its error, what the judge is worth, what it cost."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.llm_judge.printable import printable
from posttrain.llm_judge.running.progress import spent

Line = tuple[str, str, str]
"""What it is, the figure, what else there is to it."""


def print_record(console: Console, record: Mapping[str, Any]) -> None:
    """Prints a record, finished or not, in a screen's length."""
    names = printable(record["a"]["name"]), printable(record["b"]["name"])
    judge = printable(record["judge"]["name"])
    prompts, comparisons = record["prompts"], record["comparisons"]
    several = f", {comparisons} comparisons" if comparisons != prompts else ""
    console.print(
        f"{names[1]} (B) against {names[0]} (A), judged by {judge}: {prompts} prompts{several}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    drawn = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column(no_wrap=True)
    drawn.add_column(justify="right", no_wrap=True)
    drawn.add_column(overflow="fold")
    for line in _lines(record):
        drawn.add_row(*line)
    console.print(drawn)
    if score := record["score"]:
        _print_groups(console, score, names)
    if power := record["power"]:
        console.print(power["sentence"], highlight=False, soft_wrap=True)
    for warning in record["warnings"]:
        console.print(f"warning: {printable(warning)}", markup=False, highlight=False, soft_wrap=True)


def _lines(record: Mapping[str, Any]) -> Iterator[Line]:
    if rates := record["rates"]:
        yield from _rates(rates)
    if sequential := record["sequential"]:
        low, high = sequential["interval"]
        clear = f"clear after {sequential['prompts']} of {sequential['of']} prompts"
        yield "interval at any time %", f"{low:.1f} to {high:.1f}", clear if sequential["better"] else "not clear"
    if score := record["score"]:
        yield from _score(score)
    if rates:
        yield from _bias(rates["bias"])
    games, took, whole = record["games"], record["spent"], record["annotations"]
    counts = [f"{games[name]} {name}" for name in ("stored", "asked", "failed", "unparsed") if games[name]]
    yield "games", str(games["total"]), ", ".join(counts)
    earlier = f"; with what was asked before {spent(whole['cost'])}" if games["stored"] else ""
    tokens = (
        f"{took['prompt_tokens']} tokens of prompts, {took['completion_tokens']} of answers, {took['seconds']:.1f} s"
    )
    yield "this run", spent(took["cost"]), tokens + earlier


def _rates(rates: Mapping[str, Any]) -> Iterator[Line]:
    p = "" if rates["p_value"] is None else f"p {rates['p_value']:.2g} against 50 %"
    yield "win rate %", _with_error(rates["win_rate"], rates["standard_error"]), p
    counts = f"{rates['n_wins']} won, {rates['n_losses']} lost, {rates['n_draws']} drawn of {rates['n_total']}"
    yield "discrete win rate %", f"{rates['discrete_win_rate']:.2f}", counts
    if rates["length_controlled_win_rate"] is not None:
        controlled = _with_error(rates["length_controlled_win_rate"], rates["lc_standard_error"])
        yield "length-controlled win rate %", controlled, ""


def _score(score: Mapping[str, Any]) -> Iterator[Line]:
    if score["kind"] == "arena_hard":
        low, high = score["interval"]
        yield "Arena-Hard score", _with_error(score["score"], score["standard_error"]), f"{low:.1f} to {high:.1f}"
    if score["kind"] == "mt_bench":
        broken = f"{score['disagreements']} of {score['ties']} ties are orders that disagree"
        overall = score["win_rate"]["overall"]
        yield "MT-Bench win rate %", _with_error(overall["value"], overall["standard_error"]), broken
    if score["kind"] == "grades":
        for side in ("a", "b"):
            overall, unread = score[side]["overall"], score[side]["unparsed"]
            note = f"{unread} without a grade" if unread else ""
            yield f"grade of {side.upper()}", _with_error(overall["value"], overall["standard_error"]), note
        if found := score["difference"]:
            yield "B less A", _with_error(found["value"], found["standard_error"]), f"p {found['p_value']:.2g}"


def _bias(bias: Mapping[str, Any]) -> Iterator[Line]:
    yield from _share("verdicts that survive the swap %", bias["consistency"])
    if bias.get("equal"):  # records of before do not say
        yield "pairs of equal answers", str(bias["equal"]), "not among those"
    yield from _share("preference for the first shown %", bias["first_position"])
    yield from _share("without a verdict %", bias["unparsed"])
    yield from _share("correlation with length", bias["length_correlation"], 1)
    if human := bias["human"]:
        yield from _share("agreement with people %", human["share"])
        yield from _share("Cohen's κ with people", human["kappa"], 1)


def _share(name: str, estimate: Mapping[str, Any] | None, unit: float = 100) -> Iterator[Line]:
    if estimate is None or estimate["value"] is None:
        return
    low, high = estimate["interval"]
    digits = 1 if unit == 100 else 2
    interval = "" if low is None else f"{unit * low:.{digits}f} to {unit * high:.{digits}f}"
    yield name, f"{unit * estimate['value']:.{digits}f}", interval


def _print_groups(console: Console, score: Mapping[str, Any], names: tuple[str, str]) -> None:
    """MT-Bench's figures by category and turn."""
    if score["kind"] == "arena_hard":
        return
    parts = [score["a"], score["b"]] if score["kind"] == "grades" else [score["win_rate"]]
    headings = list(names) if score["kind"] == "grades" else ["win rate %"]
    if len(parts[0]["by_category"]) + len(parts[0]["by_turn"]) < 2:
        return
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("by")
    for heading in headings:
        drawn.add_column(escape(heading), justify="right", no_wrap=True)
    for group, label in (("by_turn", "turn {}"), ("by_category", "{}")):
        for key in parts[0][group]:
            figures = [part[group][key] for part in parts]
            drawn.add_row(
                escape(printable(label.format(key))),
                *(_with_error(figure["value"], figure["standard_error"]) for figure in figures),
            )
    console.print(drawn)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
