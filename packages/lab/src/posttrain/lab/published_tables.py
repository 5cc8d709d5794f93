"""Tables that others have published: accuracies, numbers of items, claimed wins, each with its source.

A file of them is what `posttrain results audit` judges, and those under results/published stand beside our own rows by
`posttrain compare --with-published`: as a reference, never in a difference, a rank or a verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.core.config import Settings, read_yaml, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.lab.cell_values import NOTHING, Cells

FOLDER = "published"
NOT_MEASURED = "published, not measured here"


class PublishedTask(Settings):
    """What a column was measured on."""

    n: int = Field(ge=2)
    """Independent items: prompts, where several scores of a prompt are averaged."""
    kind: Literal["binary", "mean"] = "binary"
    """`binary`: items are right or wrong. `mean`: an item's score lies anywhere in 0 to 1."""
    metric: str | None = None
    """What a recipe's table calls it, `task/metric`; none: it stands beside no table of ours."""
    note: str | None = None

    def standard_error(self, accuracy: float) -> float:
        """Of an accuracy on these items, of which only the number is known: √(p(1 − p)/(n − 1)), as lm-eval's of right
        and wrong. For kind `mean` an upper bound: no scores in [0, 1] of that mean vary more (Bhatia, Davis 2000)."""
        return sqrt(accuracy * (1 - accuracy) / (self.n - 1))


class PublishedRow(Settings):
    """One method's accuracies."""

    name: str
    config_hash: str | None = None
    """Its publisher's, if it has one."""
    note: str | None = None
    """What it is."""
    accuracies: dict[str, Annotated[float, Field(ge=0, le=1)]]
    """By task, as shares: 0.48, not 48."""


class Claim(Settings):
    """Two rows to compare, and where one is said to be better."""

    method: str
    over: str
    wins: tuple[str, ...] = ()
    """Tasks on which an improvement is claimed. All tasks that both rows have are compared."""


class PublishedTable(Settings):
    """A table of results as it was published."""

    title: str
    source: str
    """Where it was published."""
    tasks: dict[str, PublishedTask] = Field(min_length=1)
    rows: list[PublishedRow] = Field(min_length=2)
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> "PublishedTable":
        rows = {row.name: row for row in self.rows}
        if len(rows) < len(self.rows):
            raise ValueError("two rows have the same name")
        for row in self.rows:
            _known(row.accuracies, self.tasks, f"row '{row.name}' has a task that 'tasks' lacks")
        for claim in self.claims:
            _known((claim.method, claim.over), rows, "a claim names a row that there is not")
            if claim.method == claim.over:
                raise ValueError(f"a claim compares '{claim.method}' with itself")
            shared = rows[claim.method].accuracies.keys() & rows[claim.over].accuracies.keys()
            _known(claim.wins, shared, f"'{claim.method}' over '{claim.over}': a win on a task that not both rows have")
        if len({(claim.method, claim.over) for claim in self.claims}) < len(self.claims):
            raise ValueError("two claims compare the same rows; put their wins into one")
        return self


@dataclass(frozen=True)
class Beside:
    """A published table as it stands beside one of ours."""

    title: str
    source: str
    tasks: Mapping[str, PublishedTask]
    """By the title of our column; those that both tables have."""
    rows: tuple[tuple[PublishedRow, Mapping[str, float]], ...]
    """Each with its accuracies by the title of our column."""

    @property
    def caption(self) -> str:
        """What it is called."""
        return f"{self.title} ({self.source}): {NOT_MEASURED}"

    def cells(self, columns: tuple[str, ...], beside: str) -> Cells:
        """Under our table's `columns`, with standard errors that follow from the numbers of items."""
        shown = [column for column in columns if column in self.tasks]
        body = []
        for row, accuracies in self.rows:
            values = [self._shown(column, accuracies.get(column), beside) for column in shown]
            body.append([f"{row.name} ({NOT_MEASURED})", row.config_hash or NOTHING, *values, row.note or NOTHING])
        return [["Method", "config_hash", *shown, "what it is"], *body]

    def _shown(self, column: str, accuracy: float | None, beside: str) -> str:
        if accuracy is None:
            return NOTHING
        task = self.tasks[column]
        bound = "≤ " if task.kind == "mean" else ""
        return f"{accuracy:.4f}{beside}{bound}{task.standard_error(accuracy):.4f}"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        rows = [
            {
                "method": row.name,
                "config_hash": row.config_hash,
                "note": row.note,
                "measured_here": False,
                "columns": {
                    column: {
                        "value": accuracy,
                        "standard_error": self.tasks[column].standard_error(accuracy),
                        "upper_bound": self.tasks[column].kind == "mean",
                        "n": self.tasks[column].n,
                    }
                    for column, accuracy in accuracies.items()
                },
            }
            for row, accuracies in self.rows
        ]
        return {"title": self.title, "source": self.source, "rows": rows}


def published_beside(results: Path, columns: Mapping[tuple[str, str], str]) -> list[Beside]:
    """The tables under `results`/published that share a metric with ours, whose `columns` map (task, metric) to titles.

    RequestError where no file is, one is malformed, or none shares anything.
    """
    folder = results / FOLDER
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise RequestError(f"{folder} has no published table (*.yaml); run in the repository, or leave the option out")
    titles = {f"{task}/{metric}": title for (task, metric), title in columns.items()}
    tables = [validate(PublishedTable, read_yaml(file), str(file)) for file in files]
    found = [beside for table in tables if (beside := _beside(table, titles)).tasks]
    if not found:
        known = ", ".join(sorted({task.metric for table in tables for task in table.tasks.values() if task.metric}))
        raise RequestError(f"nothing under {folder} was measured by this recipe's metrics; it has {known}")
    return found


def _beside(table: PublishedTable, titles: Mapping[str, str]) -> Beside:
    column_of = {
        name: titles[task.metric] for name, task in table.tasks.items() if task.metric and task.metric in titles
    }
    return Beside(
        table.title,
        table.source,
        {column: table.tasks[name] for name, column in column_of.items()},
        tuple(
            (row, {column_of[name]: value for name, value in row.accuracies.items() if name in column_of})
            for row in table.rows
        ),
    )


def _known(names: Any, known: Any, what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what}: '{name}' {suggest(name, known)}")
