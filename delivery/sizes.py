"""`python -m delivery sizes`: how large each image is, what it holds, how long it took; within its limit or exit 1.

An image's size is the bytes of the files in it, counted inside and therefore the same with every engine; what engines
call its size also holds files that a later layer hides. The record is results/bench/images.json.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from delivery.engines import Engine, find_engine
from delivery.images import EngineName, Targets, built
from delivery.targets import ROOT, TARGETS, Target, chosen, tags, version_of
from posttrain.core.errors import WorkError
from posttrain.core.files import atomic_write_json, read_json

RECORD = ROOT / "results" / "bench" / "images.json"

COUNT = """
import json, os, stat
from importlib import metadata
total, files, seen = 0, 0, set()
device = os.lstat("/").st_dev
for folder, names, others in os.walk("/"):
    names[:] = [n for n in names if os.lstat(os.path.join(folder, n)).st_dev == device]
    for name in others:
        found = os.lstat(os.path.join(folder, name))
        if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            total, files = total + found.st_size, files + 1
packages = {d.metadata["Name"]: d.version for d in metadata.distributions()}
print(json.dumps({"bytes": total, "files": files, "packages": len(packages), "torch": packages.get("torch")}))
"""
"""Runs inside an image: bytes of its files (one of several names once; neither /proc nor other devices)."""


def sizes(
    target: Targets = None,
    engine: EngineName = "",
    check: Annotated[bool, typer.Option("--check", help="Write nothing.")] = False,
    out: Annotated[Path, typer.Option(help="The record.")] = RECORD,
) -> None:
    """Measure the images that were built for the CPU, record them, and fail where one is beyond its limit."""
    found = find_engine(engine)
    measured = {image.name: measure(image, found) for image in chosen(target or ())}
    Console().print(size_table(measured))
    if not check:
        store(measured, out)
        print(f"written to {out}")
    if troubles := beyond({name: entry["bytes"] for name, entry in measured.items()}):
        raise WorkError("; ".join(troubles))


def measure(target: Target, engine: Engine) -> dict[str, Any]:
    """What the record holds of one image; WorkError where there is none of this version."""
    version = version_of(target)
    image = tags(target, version, "cpu")[0]
    inside, note = json.loads(engine.run_program(image, COUNT)), built(target) or {}
    return {
        "version": version,
        "commit": note.get("commit"),
        "engine": engine.name,
        "seconds": note.get("seconds"),
        "limit": target.limit,
        **inside,
        "layers": engine.layers(image),
    }


def beyond(measured: dict[str, int]) -> list[str]:
    """A sentence for each image whose bytes are beyond its limit."""
    return [
        f"the image {name} has {size / 1e6:.0f} MB, and {TARGETS[name].limit / 1e6:.0f} are its limit "
        "(delivery/targets.py)"
        for name, size in measured.items()
        if size > TARGETS[name].limit
    ]


def store(measured: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes the part `images` of the record; images that were not measured now stay in it, and so do other parts."""
    record = read_json(path) if path.exists() else {}
    earlier = record.get("images", {})
    kind = {key: value for key, value in machine().items() if key not in ("packages", "threads")}
    images = {name: entry for name, entry in {**earlier, **measured}.items() if name in TARGETS}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write_json(path, {**record, "when": when, "machine": kind, "images": images})


def size_table(measured: dict[str, dict[str, Any]]) -> Table:
    """A row an image."""
    table = Table("image", "MB", "limit", "packages", "files", "torch", "built in", box=None)
    for name, entry in measured.items():
        seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.0f} s"
        numbers = [f"{entry['bytes'] / 1e6:.0f}", f"{entry['limit'] / 1e6:.0f}", str(entry["packages"])]
        table.add_row(name, *numbers, str(entry["files"]), entry["torch"] or "none", seconds)
    return table
