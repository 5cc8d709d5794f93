"""`posttrain plan RECIPE [METHOD…]`: what the stages of a recipe will take on a GPU, before anything is paid for."""

import json
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from posttrain.lab.forecast import StageForecast
    from posttrain.lab.gpus import Gpu
    from posttrain.lab.model_shapes import ModelShape
    from posttrain.lab.recipe import Recipe

DEFAULT_GPU = "l4"
ABOUT = (
    "An estimate. Memory: counted tensor by tensor, every sequence at its longest, trainer and services on one card. "
    "Hours: FLOPs at 30 % of the card's peak, decoding at 60 % of its bandwidth or 0.5 ms a block; evaluation, loading "
    "and waiting are not in them."
)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or a path to a YAML file.")],
    methods: Annotated[
        list[str] | None, typer.Argument(help="Methods or variants; none: what the recipe compares.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="l4, a10, a100-40, a100-80, h100, …; none: the recipe's, or l4.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="An hour of it; none: the recipe's, where it is for this card.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value in the recipe. May be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Say what each stage takes: parameters, memory part by part, steps, tokens, hours, price, and whether it fits.

    Needs the model's config.json only, and no data.
    """
    from posttrain.lab.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    found = forecast_recipe(loaded, methods or list(loaded.compared()), gpu or loaded.gpu or DEFAULT_GPU, price)
    if as_json:
        print(json.dumps(found))
        return
    show_forecast(found)


def forecast_recipe(recipe: "Recipe", methods: list[str], gpu: str, price: float | None = None) -> dict[str, Any]:
    """The forecast as plain data; RequestError for an unknown method or card, or a model whose shape is not known."""
    from posttrain.lab.forecast import forecast, rows_of
    from posttrain.lab.gpus import find_gpu
    from posttrain.lab.models import resolve_shape
    from posttrain.lab.stage_walk import needed_stages

    card, shape = find_gpu(gpu), resolve_shape(recipe.model, recipe.revision)
    per_hour = price
    if price is None and recipe.price and gpu.lower() in re.findall(r"[\w-]+", recipe.price.machine.lower()):
        per_hour = recipe.price.per_hour
    stages = needed_stages(recipe, methods)
    by_name = {stage.name: stage for stage in stages}
    found = [forecast(recipe, stage, shape, card, rows_of(recipe, stage, by_name)) for stage in stages]
    seconds = [each.work.seconds for each in found]
    known = [each for each in seconds if each is not None]
    hours = sum(known) / 3600
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "gpu": card.title,
        "gpu_memory_bytes": card.memory,
        "parameters": shape.parameters,
        "stages": [_plain(recipe, each, shape, card, per_hour) for each in found],
        "fits": all(each.total <= card.memory for each in found),
        "hours": hours,
        "hours_complete": len(known) == len(seconds),
        "price": None if per_hour is None else hours * per_hour,
        "currency": recipe.price.currency if recipe.price else None,
        "about": ABOUT,
    }


def forecast_on_its_card(recipe: "Recipe", methods: list[str], seeds: int = 1) -> dict[str, Any]:
    """For a dry run: `forecast` of one seed on the card that the recipe names, with the number of `seeds` where there
    are several, or `no_forecast`, why there is none; empty where the recipe names no card."""
    from posttrain.lab.model_shapes import ShapeNotKnown

    if not recipe.gpu:
        return {}
    try:
        found = forecast_recipe(recipe, methods, recipe.gpu)
        return {"forecast": found} | ({"seeds": seeds} if seeds > 1 else {})
    except ShapeNotKnown as error:
        return {"no_forecast": str(error)}


def show_notes(said: dict[str, Any]) -> None:
    """What a dry run could not find out, on standard error, and its forecast."""
    if said.get("model_not_here"):
        print(f"note: {said['model_not_here']}", file=sys.stderr)
    if said.get("no_forecast"):
        print(f"note: no forecast: {said['no_forecast']}", file=sys.stderr)
    if said.get("forecast"):
        show_forecast(said["forecast"])
        if said.get("seeds"):
            print(_of_all_seeds(said["forecast"], said["seeds"]))


def _of_all_seeds(found: dict[str, Any], seeds: int) -> str:
    """Every seed trains all stages, SFT as well."""
    least = "" if found["hours_complete"] else "at least "
    price = "" if found["price"] is None else f", {seeds * found['price']:.2f} {found['currency'] or ''}".rstrip()
    return f"That is of one seed; all {seeds} of them: {least}{seeds * found['hours']:.2f} hours{price}."


def _plain(
    recipe: "Recipe", found: "StageForecast", shape: "ModelShape", gpu: "Gpu", per_hour: float | None
) -> dict[str, Any]:
    from posttrain.lab.forecast_remedies import remedy

    work, fits = found.work, found.total <= gpu.memory
    settings: Any = found.stage.settings
    hours = None if work.seconds is None else work.seconds / 3600
    return {
        "stage": found.stage.name,
        "method": found.stage.method,
        "adapter": found.how.adapter if found.how else None,
        "precision": getattr(settings, "precision", None) if found.how else None,
        "gradient_checkpointing": found.how.checkpointing if found.how else None,
        "trained_parameters": found.trained_parameters,
        "memory_bytes": dict(found.memory),
        "total_bytes": found.total,
        "fits": fits,
        "remedy": None if fits else remedy(recipe, found, shape, gpu),
        "steps": work.steps,
        "tokens_trained": work.trained,
        "tokens_generated": work.generated,
        "hours": hours,
        "price": None if hours is None or per_hour is None else hours * per_hour,
    }


def show_forecast(found: dict[str, Any]) -> None:
    """For people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    card, stages = found["gpu"], found["stages"]
    parameters = f"{found['parameters'] / 1e6:,.1f}M parameters"
    console.print(f"{found['recipe']}: {found['model']}, {parameters}, on one {card}", highlight=False, markup=False)
    drawn = Table(title=f"Memory in GiB, of {found['gpu_memory_bytes'] / 2**30:.1f}", title_justify="left")
    parts = list(dict.fromkeys(part for stage in stages for part in stage["memory_bytes"]))
    drawn.add_column("Stage")
    for stage in stages:
        drawn.add_column(stage["stage"], justify="right")
    for part in parts:
        drawn.add_row(part, *(_gib(stage["memory_bytes"].get(part)) for stage in stages))
    drawn.add_section()
    drawn.add_row("together", *(_gib(stage["total_bytes"]) for stage in stages))
    drawn.add_row("fits", *("yes" if stage["fits"] else "no" for stage in stages))
    console.print(drawn)
    console.print(_work_table(found))
    for stage in stages:
        if not stage["fits"]:
            change = " ".join(f"--set {each}" for each in stage["remedy"] or ())
            what = f"it would with {change}" if change else "a larger card or a smaller model is needed"
            console.print(f"{stage['stage']} does not fit: {what}", highlight=False, markup=False)
    if not found["hours_complete"]:
        console.print("—: the number of rows is not known; set data.….rows or expected.rows", highlight=False)
    console.print(found["about"], highlight=False, markup=False)


def _work_table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    drawn = Table(title="Work", title_justify="left")
    for name in ("Stage", "trains", "in", "parameters trained", "steps", "tokens trained", "tokens generated"):
        drawn.add_column(name, justify="right" if name in ("steps",) or "t" in name[:1] else "left")
    drawn.add_column("hours", justify="right")
    priced = found["price"] is not None
    if priced:
        drawn.add_column(f"price ({found['currency'] or 'per --price'})", justify="right")
    for stage in found["stages"]:
        held = f"{stage['precision']}{', checkpointing' if stage['gradient_checkpointing'] else ''}"
        counts = (_count(stage[key]) for key in ("steps", "tokens_trained", "tokens_generated"))
        trains = (stage["adapter"] or "—", held if stage["adapter"] else "—", _count(stage["trained_parameters"]))
        cost = (_number(stage["hours"]), *((_number(stage["price"]),) if priced else ()))
        drawn.add_row(stage["stage"], *trains, *counts, *cost)
    drawn.add_section()
    whole = "" if found["hours_complete"] else "≥ "
    total = (f"{whole}{found['hours']:.2f}", *((f"{whole}{found['price']:.2f}",) if priced else ()))
    drawn.add_row("together", *[""] * 6, *total)
    return drawn


def _gib(count: int | None) -> str:
    return "—" if count is None else f"{count / 2**30:.2f}"


def _count(count: int | None) -> str:
    return "—" if count is None else f"{count:,}"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"
