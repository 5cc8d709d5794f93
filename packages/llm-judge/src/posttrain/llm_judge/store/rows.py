"""Many rows in one statement of SQL.

Between two steps of SQLite Python's threads take turns, and the event loop of a run is the busier one: the thread that
writes waits each time for its turn. So what is written together is written in few statements.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

VALUES_AT_ONCE = 10_000
"""In one statement; SQLite takes 32,766 at most."""


def rows_in(connection: sqlite3.Connection, statement: str, values: Sequence[Any]) -> Iterator[Any]:
    """The rows of `statement`, which ends with the name of a column, where the column has one of `values`."""
    for start in range(0, len(values), VALUES_AT_ONCE):
        some = values[start : start + VALUES_AT_ONCE]
        yield from connection.execute(f"{statement} IN ({_marks(some)})", some)


def insert(
    connection: sqlite3.Connection,
    into: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    returning: str = "",
) -> list[Any]:
    """Inserts `rows`. `into`: the statement up to the name of the table; `returning`: columns to give back."""
    returned, at_once = [], max(1, VALUES_AT_ONCE // len(columns))
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        values = ", ".join([f"({_marks(columns)})"] * len(some))
        statement = f"{into} ({', '.join(columns)}) VALUES {values}{returning and f' RETURNING {returning}'}"
        returned += connection.execute(statement, list(chain.from_iterable(some))).fetchall()
    return returned


def ids(
    connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: Mapping[Any, Sequence[Any]]
) -> dict[Any, int]:
    """The ids of `rows`, by what the first of their columns has, which no two rows have alike; those that the table
    lacks are put into it."""
    name = columns[0]
    found = dict(rows_in(connection, f"SELECT {name}, id FROM {table} WHERE {name}", list(rows)))
    missing = [row for value, row in rows.items() if value not in found]
    return found | dict(insert(connection, f"INSERT INTO {table}", columns, missing, f"{name}, id"))


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
