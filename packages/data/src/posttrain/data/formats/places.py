"""Where in a row a value stands: a column's name, a path into nested columns, or a text made of several.

answer               the column of that name; it goes before a path where a name holds dots
meta.answers.0       by the names of nested columns and the numbers of lists
"{title}: {body}"    columns or paths in braces, put together; nothing for null; blanks around the whole are cut
"""

import string
from collections.abc import Mapping
from typing import Any

from posttrain.core.errors import RequestError


class NoSuchPlace(Exception):
    """A row has no such column, or nothing at that path; the message is the column or path."""


def value_at(values: Mapping[str, Any], place: str) -> Any:
    """What stands at a place of a row; NoSuchPlace."""
    if place in values:
        return values[place]
    return _filled(values, place) if "{" in place else _nested(values, place)


def matches(values: Mapping[str, Any], where: Mapping[str, Any], owner: str) -> bool:
    """Whether every place has its value, or one of its values; RequestError, which starts with `owner`, for a place
    that the row lacks."""
    for place, wanted in where.items():
        try:
            value = value_at(values, place)
        except NoSuchPlace as missing:
            raise RequestError(
                f"{owner} has no column '{missing}' (it has {', '.join(values)}); mend where.{place} of the data"
            ) from None
        among = wanted if isinstance(wanted, tuple | list) else (wanted,)
        # True is 1 for Python and not for a person.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in among):
            return False
    return True


def _nested(values: Mapping[str, Any], path: str) -> Any:
    place: Any = values
    for part in path.split("."):
        if isinstance(place, Mapping) and part in place:
            place = place[part]
        elif isinstance(place, list | tuple) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        else:
            raise NoSuchPlace(path)
    return place


def _filled(values: Mapping[str, Any], template: str) -> str:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise RequestError(f"columns: '{template}' is no text with columns in braces: {error}") from None
    text = ""
    for literal, field, specification, conversion in parts:
        text += literal
        if field is None:
            continue
        if not field or specification or conversion:
            raise RequestError(f"columns: '{template}' must name a column in each pair of braces, and nothing else")
        value = values[field] if field in values else _nested(values, field)
        text += "" if value is None else str(value)
    return text.strip()
