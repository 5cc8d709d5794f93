"""What the words about a licence mean: SPDX expressions where that is sure, names as found where it is not.

Takes an entry of inventory.py, knows nothing of images or files. Sources in their order: License-Expression (PEP 639),
the field License, the classifiers, the licence's text; of Debian packages the short names of their copyright files.
Several terms of one component all apply.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from license_expression import ExpressionError, Licensing, get_spdx_licensing


class Copyleft(IntEnum):
    """What a licence asks of software that is combined with the component."""

    NONE = 0
    WEAK = 1
    """Changes of the component itself stay under its licence: LGPL, MPL."""
    STRONG = 2
    """All of the combined work comes under it: GPL, AGPL."""


@dataclass(frozen=True)
class Licences:
    """The terms of one component; all of them apply."""

    spdx: tuple[str, ...] = ()
    """Valid SPDX expressions."""
    names: tuple[str, ...] = ()
    """Words that no SPDX id is sure for."""
    concluded: bool = False
    """Read from the licence's text, where the metadata does not say which one it is."""

    @property
    def known(self) -> bool:
        return bool(self.spdx) and not self.names

    @property
    def text(self) -> str:
        """All terms in one line; `unknown` where there are none."""
        terms = [*self.spdx, *self.names]
        return " AND ".join(f"({t})" if " OR " in t and len(terms) > 1 else t for t in terms) or "unknown"

    @property
    def copyleft(self) -> Copyleft:
        return max([*map(_copyleft, self.spdx), *map(_copyleft_of_name, self.names)], default=Copyleft.NONE)


ALIASES = {
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "2-clause bsd": "BSD-2-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "3-clause bsd": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license iscl": "ISC",
    "mit license": "MIT",
    "the mit license": "MIT",
    "the mit license mit": "MIT",
    "mozilla public license 2.0 mpl 2.0": "MPL-2.0",
    "psfl": "PSF-2.0",
    "python software foundation license": "PSF-2.0",
    "the unlicense unlicense": "Unlicense",
    "zlib/libpng license": "Zlib",
    "gnu lesser general public license v2 or later lgplv2+": "LGPL-2.0-or-later",
    "gnu lesser general public license v3 lgplv3": "LGPL-3.0-only",
    "gnu lesser general public license v3 or later lgplv3+": "LGPL-3.0-or-later",
    "gnu general public license v2 gplv2": "GPL-2.0-only",
    "gnu general public license v2 or later gplv2+": "GPL-2.0-or-later",
    "gnu general public license v3 gplv3": "GPL-3.0-only",
    "gnu general public license v3 or later gplv3+": "GPL-3.0-or-later",
    "gnu affero general public license v3": "AGPL-3.0-only",
    "gnu affero general public license v3 or later agplv3+": "AGPL-3.0-or-later",
}
"""What the field License and the last part of a classifier say, in lower case without commas and brackets."""

TEXTS = (
    ("AGPL-3.0-only", r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3"),
    ("LGPL-3.0-only", r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"),
    ("LGPL-2.1-only", r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1"),
    ("GPL-3.0-only", r"GNU GENERAL PUBLIC LICENSE\s+Version 3"),
    ("GPL-2.0-only", r"GNU GENERAL PUBLIC LICENSE\s+Version 2"),
    ("Apache-2.0", r"Apache License\s+Version 2\.0"),
    ("MPL-2.0", r"Mozilla\s+Public\s+License,?\s+(Version|v\.)\s*2\.0"),
    ("PSF-2.0", r"PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2"),
    ("MIT", r"Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge,\s+to\s+any\s+person\s+obtaining"),
    ("ISC", r"Permission\s+to\s+use,\s+copy,\s+modify,\s+and(/or)?\s+distribute\s+this\s+software"),
)
"""SPDX id to the words that only its text has."""

DEBIAN = {
    "expat": "MIT",
    "artistic": "Artistic-1.0-Perl",
    "zlib": "Zlib",
    "isc": "ISC",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "psf-2": "PSF-2.0",
    "python-2.0": "PSF-2.0",
    "mpl-1.1": "MPL-1.1",
    "mpl-2.0": "MPL-2.0",
    "apache-2": "Apache-2.0",
    "bsd-3": "BSD-3-Clause",
    "mpl-2": "MPL-2.0",
    "gfdl-niv-1.3": "GFDL-1.3-no-invariants-only",
    "gfdl-niv-1.3+": "GFDL-1.3-no-invariants-or-later",
}
"""Debian's short names that SPDX has under another one; the GNU ones are a rule."""


def python_licences(distribution: Mapping[str, Any]) -> Licences:
    """The licences of a Python distribution."""
    for said in (distribution["license_expression"], distribution["license"]):
        found = _spdx(said)
        if found:
            return Licences((found,))
    parts = [classifier.rsplit(" :: ", 1)[-1] for classifier in distribution["license_classifiers"]]
    names = [part for part in parts if part not in ("OSI Approved", "DFSG approved", "License")]
    from_classifiers = [_spdx(name) for name in names]
    if names and all(from_classifiers):
        return Licences(_once(found for found in from_classifiers if found))
    in_texts = _once(found for text in distribution["license_texts"] for found in recognised(text))
    field = distribution["license"].strip()
    said = [*names, field] if field and "\n" not in field and len(field) < 80 else names
    if any("BSD" in word for word in said):
        # A long text may hold the licences of what is bundled too: it is asked only which BSD licence is meant.
        in_texts = tuple(found for found in in_texts if found.startswith("BSD"))[:1]
    if in_texts:
        return Licences(in_texts, concluded=True)
    return Licences(names=_once(said))


def debian_licences(package: Mapping[str, Any]) -> Licences:
    """The licences of a Debian package: those of all files of its source. Where its copyright file is prose, what is
    recognised in it and the common licences that it refers to, whose "or later" only a reader can tell."""
    if not package["license_names"]:
        references = package["license_references"]
        sure = _once([*recognised(package["license_text"]), *(found for found in map(_valid, references) if found)])
        unsure = tuple(name for name in references if not _valid(name))
        return Licences(sure, unsure, concluded=bool(sure))
    found = {name: _debian_spdx(name) for name in package["license_names"]}
    spdx = _once(expression for expression in found.values() if expression)
    return Licences(spdx, tuple(name for name, expression in found.items() if not expression))


def recognised(text: str) -> list[str]:
    """The SPDX ids of the licences whose words stand in a text; a GNU licence's own text does not say "or later"."""
    found = [spdx for spdx, words in TEXTS if re.search(words, text, re.IGNORECASE)]
    if "Redistribution and use in source and binary forms" in text:
        third_clause = re.search(r"neither\s+the\s+names?|endorse\s+or\s+promote", text, re.IGNORECASE)
        found.append("BSD-3-Clause" if third_clause else "BSD-2-Clause")
    return found


def _spdx(words: str) -> str:
    """The SPDX expression that a short text is or stands for; empty where that is not sure."""
    words = words.strip()
    if not words or "\n" in words:
        return ""
    alias = ALIASES.get(re.sub(r"[(),]", "", words).lower())
    return alias or _valid(words)


def _valid(expression: str) -> str:
    """A valid SPDX expression in SPDX's own spelling; empty for anything else."""
    try:
        parsed = _licensing().parse(expression, validate=True)
    except ExpressionError:
        return ""
    return str(parsed.render()) if parsed is not None else ""


EXCEPTIONS = {
    "with Bison exception": "WITH Bison-exception-2.2",
    "with Texinfo exception": "WITH Texinfo-exception",
    "with Linux-syscall-note exception": "WITH Linux-syscall-note",
}
"""Debian's names of exceptions to the GPL that are one thing in SPDX (Autoconf's, say, are several)."""


def _debian_spdx(name: str) -> str:
    """Debian's short name (`GPL-2+ or Expat`) as an SPDX expression; empty where SPDX has no such thing."""
    for debian, exception in EXCEPTIONS.items():
        if name.endswith(debian):
            term = _debian_spdx(name.removesuffix(debian).strip())
            return _valid(f"{term} {exception}") if term else ""
    words = re.split(r"\s*,?\s+(or|and)\s+", name)
    return _valid(" ".join(word.upper() if word in ("or", "and") else _debian_term(word) for word in words))


def _debian_term(word: str) -> str:
    gnu = re.fullmatch(r"(L|A)?(GPL|GFDL)-(\d)(\.\d)?(\+?)", word)
    if gnu is None:
        return DEBIAN.get(word.lower(), word)
    kind, family, major, minor, later = gnu.groups()
    return f"{kind or ''}{family}-{major}{minor or '.0'}-{'or-later' if later else 'only'}"


@cache
def _licensing() -> Licensing:
    return get_spdx_licensing()


STRONG = re.compile(r"^(A?GPL-|SSPL-|OSL-|EUPL-|CC-BY-SA-|CECILL-[12])", re.IGNORECASE)
WEAK = re.compile(r"^(LGPL-|MPL-|EPL-|CDDL-|CECILL-C)", re.IGNORECASE)


def _copyleft(expression: str) -> Copyleft:
    """Of alternatives the least, of terms that all apply the most; an exception to the GPL makes it weak."""
    return _of_tree(_licensing().parse(expression))


def _of_tree(term: Any) -> Copyleft:
    arguments = [_of_tree(argument) for argument in getattr(term, "args", ())]
    if arguments:
        return min(arguments) if term.operator.strip() == "OR" else max(arguments)
    key = str(term.render())
    if STRONG.match(key):
        return Copyleft.WEAK if " WITH " in key else Copyleft.STRONG
    return Copyleft.WEAK if WEAK.match(key) else Copyleft.NONE


def _copyleft_of_name(name: str) -> Copyleft:
    if re.search(r"(?<!L)GPL|General Public License", name) and not re.search("lesser|library", name, re.IGNORECASE):
        return Copyleft.WEAK if "exception" in name.lower() else Copyleft.STRONG
    return Copyleft.WEAK if re.search(r"LGPL|MPL|Lesser General", name) else Copyleft.NONE


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
