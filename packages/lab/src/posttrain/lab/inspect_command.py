"""`posttrain data inspect RECIPE`: rows of a recipe's data with their loss mask, before money is spent on them."""

import json
from typing import Annotated

import typer


def inspect(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.", show_default=False)],
    source: Annotated[
        str, typer.Option(help="Which of the recipe's data: sft, pairs, prompts, preference_prompts, validation, …")
    ] = "sft",
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    audit: Annotated[int, typer.Option(min=1, help="How many rows to check and sum up, those shown among them.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The run's seed, which orders the rows.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value in the recipe, e.g. sft.max_length=512.")
    ] = None,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="One JSON object a row shown, and the summary as the last one.")
    ] = False,
) -> None:
    """Show rows of a recipe's data as training sees them, token by token, with what has a loss marked.

    A loss mask that is empty or covers everything, in any row that is checked, is an error. In a terminal, trained
    tokens are green, the others grey and what max_length cuts red; elsewhere trained tokens stand in ⟦ ⟧.
    """
    from posttrain.lab.inspection import as_json, summary
    from posttrain.lab.inspection_source import inspect_source
    from posttrain.lab.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    inspected = inspect_source(loaded, source, max(rows, audit), seed)
    if jsonl:
        for row in inspected.rows[:rows]:
            print(json.dumps(as_json(inspected.tokenizer, row), ensure_ascii=False))
        about = {"recipe": loaded.name, "source": source, "path": inspected.source.path, "seed": seed}
        print(json.dumps({"summary": about | summary(inspected.rows, inspected.limits)}, ensure_ascii=False))
        return

    from rich.console import Console

    from posttrain.lab.inspection_view import show

    title = f"{loaded.name}, {source}: {inspected.source.path}, split {inspected.source.split}, seed {seed}"
    show(inspected, rows, title, Console())
