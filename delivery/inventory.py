"""What software lies in a file system: Python distributions wherever they are, Debian packages, the interpreter.

Runs inside an image as `python -I -c SOURCE`, so it uses the standard library alone; called here, on any folder. It
only collects what the files say (names, versions, words about licences); what they mean is for licences.py.
"""

import configparser
import email.parser
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

NOT_SOFTWARE = ("proc", "sys", "dev", "run", "tmp")
LICENCE_FILES = ("LICENSE", "LICENCE", "COPYING")
LONGEST_TEXT = 20_000
"""Characters of a licence's text that are kept: the longest usual one, the GPL, says what it is at its beginning."""


def inventory(root: Path) -> dict[str, Any]:
    """Everything below a folder, sorted by name; distributions that lie in several places stand there once each."""
    return {
        "python": sorted(_distributions(root), key=lambda d: (d["name"].lower(), d["version"], d["path"])),
        "debian": _debian_packages(root),
        "distribution": _release(root),
        "interpreter": _interpreter(root),
    }


def _distributions(root: Path) -> Iterator[dict[str, Any]]:
    for folder, folders, _ in os.walk(root):
        here = Path(folder)
        if here == root:
            folders[:] = [name for name in folders if name not in NOT_SOFTWARE]
        for name in folders:
            if name.endswith((".dist-info", ".egg-info")):
                found = _distribution(here / name, root)
                if found is not None:
                    yield found


def _distribution(folder: Path, root: Path) -> dict[str, Any] | None:
    """What a .dist-info folder says; None where it is a remnant without metadata."""
    metadata = next((folder / n for n in ("METADATA", "PKG-INFO") if (folder / n).is_file()), None)
    if metadata is None:
        return None
    message = _headers(metadata)
    origin = _json(folder / "direct_url.json")
    return {
        "name": str(message["Name"]),
        "version": str(message["Version"]),
        "path": str(folder.relative_to(root)),
        "summary": message.get("Summary", ""),
        "requires": message.get_all("Requires-Dist", []),
        "license_expression": message.get("License-Expression", ""),
        "license": message.get("License", ""),
        "license_classifiers": [c for c in message.get_all("Classifier", []) if c.startswith("License ::")],
        "license_texts": _licence_texts(folder),
        # What pip records of a wheel that was given by its path or address: the digest of that very file.
        "hashes": origin.get("archive_info", {}).get("hashes", {}),
    }


def _licence_texts(folder: Path) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_licence(path.name)]
    return [path.read_text(encoding="utf-8", errors="replace")[:LONGEST_TEXT] for path in files]


def _is_licence(name: str) -> bool:
    return name.upper().startswith(LICENCE_FILES)


def _debian_packages(root: Path) -> list[dict[str, Any]]:
    """The installed packages of dpkg's status file; empty where the system has none."""
    status = root / "var/lib/dpkg/status"
    if not status.is_file():
        return []
    found = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = email.parser.HeaderParser().parsestr(paragraph)
        if fields["Package"] and str(fields["Status"]).endswith(" installed"):
            name = str(fields["Package"])
            source, _, source_version = str(fields.get("Source", name)).partition(" ")
            copyright_file = _copyright(root, name)
            found.append(
                {
                    "name": name,
                    "version": str(fields["Version"]),
                    "architecture": str(fields["Architecture"]),
                    "source": source,
                    "source_version": source_version.strip("()") or str(fields["Version"]),
                    "summary": str(fields.get("Description", "")).partition("\n")[0],
                    "license_names": _licence_names(copyright_file),
                    "license_references": sorted(set(re.findall(r"/common-licenses/([\w.+-]*[\w+])", copyright_file))),
                    "license_text": "" if _machine_readable(copyright_file) else copyright_file[:LONGEST_TEXT],
                }
            )
    return sorted(found, key=lambda package: (package["name"], package["architecture"]))


def _copyright(root: Path, name: str) -> str:
    """A Debian package's copyright file; empty where the image left it out."""
    folder = root / "usr/share/doc" / name
    # A package may share the folder of another one, by a link that is absolute in the image.
    if folder.is_symlink():
        target = os.readlink(folder)
        folder = root / target.lstrip("/") if target.startswith("/") else folder.parent / target
    try:
        return (folder / "copyright").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _licence_names(copyright_file: str) -> list[str]:
    """The short names of Debian's machine-readable form, each once; empty where the file is prose."""
    if not _machine_readable(copyright_file):
        return []
    return sorted(set(re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", copyright_file, re.MULTILINE)))


def _machine_readable(copyright_file: str) -> bool:
    return bool(re.search(r"^Format(-Specification)?:", copyright_file[:500], re.MULTILINE))


def _release(root: Path) -> dict[str, str]:
    """ID and VERSION_ID of the Linux distribution; empty strings where there is none."""
    values = {}
    file = root / "etc/os-release"
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            values[name] = value.strip("\"'")
    return {"id": values.get("ID", ""), "version": values.get("VERSION_ID", "")}


def _interpreter(root: Path) -> str:
    """The version of Python: of the running one for a whole system, of an environment by what it says."""
    if root == Path("/"):
        return platform.python_version()
    settings = root / "pyvenv.cfg"
    if not settings.is_file():
        return ""
    parser = configparser.ConfigParser()
    parser.read_string("[venv]\n" + settings.read_text(encoding="utf-8"))
    return parser["venv"].get("version", "")


def _headers(path: Path) -> Message:
    return email.parser.HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


if __name__ == "__main__":
    json.dump({**inventory(Path("/")), "commit": os.environ.get("POSTTRAIN_GIT_COMMIT", "")}, sys.stdout)
