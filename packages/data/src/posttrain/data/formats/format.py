"""What a dataset's format is: its columns by role, and how a row of it becomes one of ours.

A format never reads a file and never sees ids or splits. It asks a `Record` for its columns by role (`question`,
`chosen`), and the record knows the dataset's name for the error when a column is not there.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.core.errors import RequestError, suggest
from posttrain.data.formats.places import NoSuchPlace, value_at
from posttrain.data.rows import Message


@dataclass(frozen=True)
class Record:
    """One row of a dataset, read by role. `dataset` and `number` name it in errors."""

    dataset: str
    number: int
    values: Mapping[str, Any]
    columns: Mapping[str, str]
    """Role to the column that plays it, or another place (formats.places)."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What of a row is left out while the row itself stays, counted: `answers of equal score`."""

    def has(self, role: str) -> bool:
        """Whether the column is there and not null."""
        try:
            return value_at(self.values, self.columns[role]) is not None
        except NoSuchPlace:
            return False

    def __getitem__(self, role: str) -> Any:
        column = self.columns[role]
        try:
            value = value_at(self.values, column)
        except NoSuchPlace as missing:
            there = ", ".join(self.values)
            raise RequestError(
                f"dataset {self.dataset} has no column '{missing}' (it has {there}); set columns.{role} of the data "
                "to the one that plays this part"
            ) from None
        if value is None:
            raise self.error(f"column '{column}' is empty")
        return value

    def text(self, role: str) -> str:
        """The column's text; RequestError for any other kind of value."""
        value = self[role]
        if not isinstance(value, str):
            raise self.error(f"column '{self.columns[role]}' must be text, not {type(value).__name__}")
        return value

    def error(self, problem: str) -> RequestError:
        """An error about this row."""
        return RequestError(f"dataset {self.dataset}, row {self.number}: {problem}")


class UnusableRow(Exception):
    """A row that is well-formed and teaches nothing; it is left out and counted under the reason."""


@dataclass(frozen=True)
class Format:
    """How the rows of one dataset, or of one shape that many share, are read. A None means: it holds no such rows."""

    name: str
    columns: Mapping[str, str]
    """Each role and the column that plays it on the Hub."""
    version: int = 1
    """Raised when the same file gives other rows; part of the config hash."""
    hub_ids: tuple[str, ...] = ()
    """Datasets that have this format without being told."""
    default_config: str | None = None
    """The Hub's configuration when a source names none."""
    config_is_folder: bool = False
    """On the Hub the configuration is a folder (`data_dir`), not a named configuration."""
    files_are_one_split: bool = False
    """On the Hub its files are not named after splits: all of them are `train`."""
    later_roles: frozenset[str] = frozenset()
    """Roles that came after the first version: they enter a description only where a source sets them, so that
    what was described before stays as it was."""
    kind: str = ""
    """What a row's `kind` is when it has no such column; empty: the dataset's name."""
    conversation: Callable[[Record], list[Message]] | None = field(default=None, repr=False)
    pair: Callable[[Record], tuple[list[Message], str, str]] | None = field(default=None, repr=False)
    """Prompt, chosen and rejected answer; raises UnusableRow."""
    interrupted: Callable[[Record], tuple[bool, bool]] | None = field(default=None, repr=False)
    """Of a row that `pair` takes, whether the chosen and the rejected answer were cut short; None: none ever is."""
    ranking: Callable[[Record], tuple[list[Message], list[str]]] | None = field(default=None, repr=False)
    """Prompt and answers, best first; raises UnusableRow."""
    prompt: Callable[[Record], tuple[list[Message], Any]] | None = field(default=None, repr=False)
    """Prompt and reference."""
    regroup: Callable[[Sequence[Mapping[str, Any]], str], Sequence[Mapping[str, Any]]] | None = field(
        default=None, repr=False
    )
    """For data whose rows are parts of ours: all rows, and which of `conversation`, `pair`, `ranking` and `prompt` is
    wanted, to the rows that the function of that name takes."""

    def column_of(self, overrides: Mapping[str, str]) -> dict[str, str]:
        """The columns with a source's own put in; RequestError for a role that the format does not know."""
        for role in overrides:
            if role not in self.columns:
                raise RequestError(f"format '{self.name}' has no column role '{role}' {suggest(role, self.columns)}")
        return {**self.columns, **overrides}

    def described_columns(self, overrides: Mapping[str, str]) -> dict[str, str]:
        """What of the columns enters the config hash."""
        columns = self.column_of(overrides)
        return {role: column for role, column in columns.items() if role not in self.later_roles or role in overrides}


def gives(format_: Format) -> Iterable[str]:
    """The kinds of rows that a format holds, for error messages."""
    kinds = {"conversation": "conversations", "pair": "pairs", "ranking": "rankings", "prompt": "prompts"}
    return [plural for attribute, plural in kinds.items() if getattr(format_, attribute)]
