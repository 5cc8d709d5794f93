"""How long a stage or an evaluation takes here: from the runs that are there, else from what the recipe says."""

from collections import defaultdict
from pathlib import Path
from statistics import median

from posttrain.core.files import read_json
from posttrain.lab.evaluations import SETTINGS_FILE
from posttrain.lab.recipe import Recipe
from posttrain.lab.tasks import EVALUATION


def seconds_by_work(runs: Path, recipe: Recipe) -> dict[str, float]:
    """The median of this recipe's finished runs of each method, and of its evaluations; the recipe's where none is."""
    found: dict[str, list[float]] = defaultdict(list)
    for path in (runs / recipe.name).glob("*/*/provenance.json"):
        cost = read_json(path).get("cost")
        if cost:
            found[path.parents[1].name].append(cost["wall_seconds"])
    for path in (runs / recipe.name).glob(f"*/*/eval/{SETTINGS_FILE}"):
        if seconds := read_json(path).get("seconds"):
            found[EVALUATION].append(seconds)
    return {**recipe.seconds, **{work: median(seconds) for work, seconds in found.items()}}
