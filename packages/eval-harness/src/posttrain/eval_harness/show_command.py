"""`posttrain eval show`: pages through the items of an evaluation, the wrong ones above all."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from posttrain.eval_harness.show import Shown


def show(
    path: Annotated[
        Path, typer.Argument(help="An evaluation's folder (runs/eval/…/hf), a checkpoint's, or an item file.")
    ],
    task: Annotated[str | None, typer.Option(help="Only this task's items.")] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="Only items below the full score.")] = False,
    rows: Annotated[int | None, typer.Option(help="At most so many items a task.", min=1)] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder of your own lm-eval task files.")] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="One JSON object an item on standard output.")] = False,
) -> None:
    """Page through what was asked, what is right and what the model said."""
    from posttrain.eval_harness.show import item_files, shown_items

    console = Console()
    told: list[Group | Text] = []
    for file in item_files(path, task):
        items = list(shown_items(file, include_path))
        chosen = [item for item in items if item.wrong or not wrong][:rows]
        for item in chosen:
            if jsonl:
                print(json.dumps(vars(item), ensure_ascii=False))
            else:
                told.append(_panel(item, console.width))
        count = sum(item.wrong for item in items)
        told.append(
            Text(f"{file.stem}: {len(chosen)} shown; {count} of {len(items)} below the full score", style="bold")
        )
    if jsonl:
        return
    with console.pager(styles=True) if console.is_terminal else nullcontext():
        for part in told:
            console.print(part)


def _panel(item: "Shown", width: int) -> Group:
    """Question above, gold and answer beside each other."""
    score = "no score" if item.score is None else f"score {item.score:g}"
    sides = Table(box=None, pad_edge=False, expand=True, width=width)
    sides.add_column("gold", ratio=1)
    sides.add_column("answer", ratio=2)
    sides.add_column("taken", ratio=1)
    sides.add_row(Text(_visible(item.gold)), Text(_visible(item.answer)), Text(_visible(item.prediction)))
    heading = Rule(Text(f"{item.task} {item.id} · {score}"), align="left")
    return Group(heading, Padding(Text(_visible(item.question)), (0, 0, 1, 2)), sides)


def _visible(text: str) -> str:
    """Control characters of an answer are shown and not obeyed by the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
