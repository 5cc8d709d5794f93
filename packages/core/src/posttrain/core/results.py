"""The results store: `metrics.jsonl` of a runs folder, one JSON object an evaluation of one task.

Lines are only ever appended, under a lock. What counts is the last line of each key; a line with `"retracted": why`
takes its key out. Half a last line is what a crash left: readers pass over it, the next writer cuts it off. Does not
know what a metric means.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.files import append_durably, whole_lines

KEY_FIELDS = ("fingerprint", "task", "version", "few_shot", "limit", "backend")
"""What two evaluations share when the later replaces the earlier one."""


def result_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The key of a result row as text; ValueError when a key field is missing."""
    missing = [field for field in KEY_FIELDS if field not in row]
    if missing:
        raise ValueError(f"a result row needs {', '.join(missing)}")
    return tuple(json.dumps(row[field]) for field in KEY_FIELDS)


def append_result(path: Path, row: Mapping[str, Any]) -> None:
    """Appends one evaluation; it replaces an earlier one of the same key. ValueError without a full key."""
    result_key(row)
    append_durably(path, row)


def retract_result(path: Path, row: Mapping[str, Any], why: str) -> None:
    """Takes the evaluation with the key of `row` out of the store, for the reason given."""
    if not why:
        raise ValueError("a retraction needs its reason")
    append_result(path, {field: row[field] for field in KEY_FIELDS} | {"retracted": why})


def read_results(path: Path) -> list[dict[str, Any]]:
    """The last row of every key in the order of first appearance, without the retracted; none if there is no file.

    RequestError names file and line of what is not a result row.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for number, line in enumerate(whole_lines(content), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            latest[result_key(row)] = row
        except (ValueError, TypeError) as error:
            raise RequestError(f"{path}:{number} is not a result row: {error}; remove the line") from None
    return [row for row in latest.values() if not row.get("retracted")]


def find_result(path: Path, **key: Any) -> dict[str, Any] | None:
    """The stored row whose key fields are exactly `key` (all of KEY_FIELDS), or None."""
    wanted = result_key(key)
    return next((row for row in read_results(path) if result_key(row) == wanted), None)
