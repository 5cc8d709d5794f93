"""The licence list of an image as Markdown: what needs a look first, then every component."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delivery.licences import Copyleft, Licences, debian_licences, python_licences


@dataclass(frozen=True)
class Row:
    """A component and its terms."""

    kind: str
    """`python` or `debian`."""
    name: str
    version: str
    licences: Licences


def licence_rows(inventory: Mapping[str, Any]) -> list[Row]:
    """Every component once a version, Python distributions first."""
    python = [Row("python", d["name"], d["version"], python_licences(d)) for d in inventory["python"]]
    debian = [Row("debian", p["name"], p["version"], debian_licences(p)) for p in inventory["debian"]]
    return list(dict.fromkeys([*python, *debian]))


def licence_list(subject: str, rows: list[Row]) -> str:
    """The list as Markdown.

    Python libraries are named, for they are imported beside this project's code. Debian's packages are counted: their
    terms are those of every file of the source that they were made from, tests and packaging too, so that nearly all of
    them show the GPL.
    """
    lines = [f"# Licences of {subject}", ""]
    for kind, title in (("python", "Python distributions"), ("debian", "Debian packages")):
        mine = [row for row in rows if row.kind == kind]
        if not mine:
            continue
        strong = [row for row in mine if row.licences.copyleft == Copyleft.STRONG]
        unknown = [row for row in mine if not row.licences.known]
        say = _names if kind == "python" else _number
        lines += [f"## {len(mine)} {title}", ""]
        if kind == "debian":
            lines.append("- Terms are those of every file of a package's source, tests and packaging too.")
        lines.append(f"- Strong copyleft: {say(strong)}.")
        lines.append(f"- No SPDX id is sure for all their terms: {say(unknown)}.")
        lines.append(f"- {_counts(mine)}.")
        lines += ["", "| component | version | licences | |", "|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.version} | {row.licences.text.replace('|', '/')} | {_remark(row)} |" for row in mine
        ]
        lines.append("")
    return "\n".join(lines)


def summary(subject: str, rows: list[Row]) -> str:
    """One line of counts."""
    strong = [row for row in rows if row.kind == "python" and row.licences.copyleft == Copyleft.STRONG]
    unknown = sum(not row.licences.known for row in rows)
    kinds = Counter(row.kind for row in rows)
    return (
        f"{subject}: {kinds['python']} Python distributions, {kinds['debian']} Debian packages; strong copyleft in "
        f"Python: {_names(strong)}; without a sure SPDX id: {unknown}"
    )


def _remark(row: Row) -> str:
    remarks = []
    if row.licences.copyleft == Copyleft.STRONG:
        remarks.append("strong copyleft")
    if not row.licences.known:
        remarks.append("unknown")
    if row.licences.concluded:
        remarks.append("from the text")
    return ", ".join(remarks)


def _names(rows: list[Row]) -> str:
    return ", ".join(row.name for row in rows) or "none"


def _number(rows: list[Row]) -> str:
    return str(len(rows))


def _counts(rows: list[Row]) -> str:
    counted = Counter(row.licences.text for row in rows if row.licences.known)
    return ", ".join(f"{terms} {count}" for terms, count in counted.most_common(8))
