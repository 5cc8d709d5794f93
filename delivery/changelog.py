"""A package's CHANGELOG.md as text: the section "Unreleased", its entries, and what a release makes of it.

`## Unreleased` stands above the versions, the newest first; an entry is a line that starts with `- ` and what is
indented below it.
"""

import re

HEADING = "## Unreleased"
_SECTION = re.compile(rf"^{HEADING}[ \t]*\n(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def unreleased(text: str) -> str:
    """What stands below "Unreleased", without the heading; empty where there is no such section or nothing in it."""
    section = _SECTION.search(text)
    return section["body"].strip() if section else ""


def released(text: str, version: str, date: str) -> str:
    """The changelog with its "Unreleased" section named after the version and date, and an empty one above it.

    ValueError where nothing is unreleased.
    """
    section, entries = _SECTION.search(text), unreleased(text)
    if section is None or not entries:
        raise ValueError("nothing is unreleased")
    rest = text[section.end() :]
    return f"{text[: section.start()]}{HEADING}\n\n## {version} ({date})\n\n{entries}\n" + (f"\n{rest}" if rest else "")


def with_entry(text: str, entry: str) -> str:
    """The changelog with one more entry at the end of "Unreleased"; the section is made where there is none."""
    section = _SECTION.search(text)
    if section is None:
        first = re.search(r"^## ", text, re.MULTILINE)
        at = first.start() if first else len(text)
        return f"{text[:at].rstrip()}\n\n{HEADING}\n\n- {entry}\n" + (f"\n{text[at:]}" if first else "")
    body = section["body"].strip()
    entries = f"{body}\n- {entry}" if body else f"- {entry}"
    rest = text[section.end() :]
    return f"{text[: section.start()]}{HEADING}\n\n{entries}\n" + (f"\n{rest}" if rest else "")
