"""`python -m delivery sbom` and `licences`: what make sbom calls."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from delivery.images import EngineName
from delivery.subjects import Subject, subjects
from delivery.targets import ROOT
from posttrain.core.files import atomic_write_text

Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Images, or folders of environments; default: every image of this version.", show_default=False
    ),
]


def sbom(
    names: Names = None,
    engine: EngineName = "",
    out: Annotated[Path, typer.Option(help="Where the documents go.")] = ROOT / "dist" / "sbom",
    licence_lists: Annotated[
        Path | None, typer.Option("--licences", help="Write the licence lists too, here.", show_default=False)
    ] = None,
) -> None:
    """Write the bill of materials (CycloneDX JSON) of images or environments."""
    # CycloneDX's library takes half a second, which no other command of this program should.
    from delivery.sbom import bill_of_materials

    for subject in subjects(names or [], engine):
        found = subject.inventory
        path = out / f"{subject.file_name}.cdx.json"
        now = datetime.now(UTC).replace(microsecond=0)
        atomic_write_text(path, bill_of_materials(subject.name, found, subject.commit, now))
        typer.echo(f"{path}: {len(found['python'])} Python distributions, {len(found['debian'])} Debian packages")
        if licence_lists:
            _write_licences(subject, licence_lists)


def licences(
    names: Names = None,
    engine: EngineName = "",
    out: Annotated[Path, typer.Option(help="Where the lists go.")] = ROOT / "dist" / "licences",
) -> None:
    """Write the licence list (Markdown) of images or environments, and print what needs a look."""
    for subject in subjects(names or [], engine):
        _write_licences(subject, out)


def _write_licences(subject: Subject, out: Path) -> None:
    from delivery.licence_list import licence_list, licence_rows, summary

    rows = licence_rows(subject.inventory)
    path = out / f"{subject.file_name}.md"
    atomic_write_text(path, licence_list(subject.name, rows))
    typer.echo(f"{summary(subject.name, rows)}; {path}")
