"""What metadata and texts say of a licence, as SPDX expressions where that is sure; what copyleft it is."""

import pytest

from delivery.licence_list import licence_list, licence_rows, summary
from delivery.licences import Copyleft, Licences, debian_licences, python_licences, recognised

BSD3 = """Redistribution and use in source and binary forms, with or without modification, are permitted:
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote it."""
BSD2 = "Redistribution and use in source and binary forms, with or without modification, are permitted: 1. 2."
APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
MIT = "Permission is hereby granted, free of charge, to any\nperson obtaining a copy of this software"


def python(expression="", field="", classifiers=(), texts=()):
    return python_licences(
        {
            "license_expression": expression,
            "license": field,
            "license_classifiers": [f"License :: OSI Approved :: {name}" for name in classifiers],
            "license_texts": list(texts),
        }
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"expression": "MIT"}, "MIT"),
        ({"expression": "apache-2.0 or mit"}, "Apache-2.0 OR MIT"),
        ({"expression": "BSD-3-Clause", "field": "Apache 2.0"}, "BSD-3-Clause"),
        ({"field": "Apache 2.0"}, "Apache-2.0"),
        ({"field": "Apache License, Version 2.0"}, "Apache-2.0"),
        ({"field": "The MIT License (MIT)"}, "MIT"),
        ({"field": "LGPL-2.1-or-later"}, "LGPL-2.1-or-later"),
        ({"field": "MPL-2.0 AND MIT"}, "MPL-2.0 AND MIT"),
        ({"classifiers": ["MIT License"]}, "MIT"),
        ({"classifiers": ["Mozilla Public License 2.0 (MPL 2.0)"]}, "MPL-2.0"),
        ({"field": "PSFL", "classifiers": ["Python Software Foundation License"]}, "PSF-2.0"),
        ({"field": "Copyright (c) 2015\n\nA whole text", "classifiers": ["ISC License (ISCL)"]}, "ISC"),
        ({"field": "MIT", "classifiers": ["Apache Software License"]}, "MIT"),
    ],
)
def test_metadata_that_says_which_licence_it_is_is_declared(said, expected):
    assert python(**said) == Licences((expected,))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"field": "BSD", "classifiers": ["BSD License"], "texts": [BSD3]}, "BSD-3-Clause"),
        ({"field": "BSD", "classifiers": ["BSD License"], "texts": [BSD2]}, "BSD-2-Clause"),
        ({"classifiers": ["BSD License"], "texts": [f"{BSD3}\n\nbundled:\n{MIT}"]}, "BSD-3-Clause"),
        ({"texts": [APACHE]}, "Apache-2.0"),
    ],
)
def test_where_metadata_is_unclear_the_text_decides_and_that_is_said(said, expected):
    assert python(**said) == Licences((expected,), concluded=True)


def test_two_licences_in_two_texts_both_count():
    assert python(field="Dual License", texts=[APACHE, BSD3]).text == "Apache-2.0 AND BSD-3-Clause"


def test_classifiers_of_several_licences_are_terms_that_all_apply():
    assert python(classifiers=["MIT License", "Apache Software License"]).text == "MIT AND Apache-2.0"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"field": "BSD", "classifiers": ["BSD License"]}, "BSD License AND BSD"),
        ({"field": "NVIDIA Proprietary Software"}, "NVIDIA Proprietary Software"),
        ({}, "unknown"),
    ],
)
def test_what_is_not_sure_stays_as_it_is_said_and_is_not_known(said, text):
    found = python(**said)
    assert (found.text, found.known, found.spdx) == (text, False, ())


def test_each_text_is_known_by_its_own_words():
    assert recognised(BSD3) == ["BSD-3-Clause"]
    assert recognised(BSD2) == ["BSD-2-Clause"]
    assert recognised(APACHE) == ["Apache-2.0"]
    assert recognised(MIT) == ["MIT"]
    assert recognised(
        "                    GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007"
    ) == ["GPL-3.0-only"]
    assert recognised("All rights reserved.") == []


def debian(*names, references=(), text=""):
    return debian_licences({"license_names": list(names), "license_references": list(references), "license_text": text})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPL-2+", "GPL-2.0-or-later"),
        ("GPL-3", "GPL-3.0-only"),
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("GFDL-1.3", "GFDL-1.3-only"),
        ("Expat", "MIT"),
        ("Zlib", "Zlib"),
        ("GPL-1+ or Artistic", "GPL-1.0-or-later OR Artistic-1.0-Perl"),
        ("LGPL-3+ or GPL-2+", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
        ("GPL-3+ with Bison exception", "GPL-3.0-or-later WITH Bison-exception-2.2"),
        ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
    ],
)
def test_debians_short_names_are_spdx(name, expected):
    assert debian(name) == Licences((expected,))


def test_debians_names_without_an_spdx_id_stay_beside_those_that_have_one():
    found = debian("public-domain", "Expat")
    assert (found.spdx, found.names, found.known) == (("MIT",), ("public-domain",), False)


def test_a_copyright_file_in_prose_gives_the_licences_it_refers_to():
    assert debian(references=["LGPL"]) == Licences(names=("LGPL",))
    found = debian(references=["Apache-2.0", "LGPL"], text=f"In prose.\n{MIT}")
    assert found == Licences(("MIT", "Apache-2.0"), ("LGPL",), concluded=True)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", Copyleft.NONE),
        ("LGPL-2.1-or-later", Copyleft.WEAK),
        ("MPL-2.0 AND MIT", Copyleft.WEAK),
        ("GPL-3.0-only", Copyleft.STRONG),
        ("AGPL-3.0-or-later", Copyleft.STRONG),
        ("GPL-2.0-or-later OR MIT", Copyleft.NONE),
        ("GPL-2.0-only AND MIT", Copyleft.STRONG),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", Copyleft.WEAK),
        ("(GPL-2.0-only OR LGPL-2.1-only) AND BSD-3-Clause", Copyleft.WEAK),
    ],
)
def test_copyleft_is_the_least_of_alternatives_and_the_most_of_what_all_applies(expression, expected):
    assert Licences((expression,)).copyleft == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPL-2", Copyleft.STRONG),
        ("GNU General Public License", Copyleft.STRONG),
        ("LGPL-2.1", Copyleft.WEAK),
        ("GPL-3+ with autoconf exception", Copyleft.WEAK),
        ("public-domain", Copyleft.NONE),
    ],
)
def test_copyleft_is_seen_in_names_without_an_spdx_id_too(name, expected):
    assert Licences(names=(name,)).copyleft == expected


def inventory():
    def distribution(name, expression):
        return {
            "name": name,
            "version": "1.0",
            "license_expression": expression,
            "license": "",
            "license_classifiers": [],
            "license_texts": [],
        }

    package = {
        "name": "bash",
        "version": "5.2",
        "license_names": ["GPL-3+"],
        "license_references": [],
        "license_text": "",
    }
    python = [distribution("mild", "MIT"), distribution("strict", "GPL-3.0-only"), distribution("silent", "")]
    return {"python": [*python, distribution("mild", "MIT")], "debian": [package]}


def test_the_list_names_what_needs_a_look_first():
    text = licence_list("posttrain/data:0.1.0", licence_rows(inventory()))
    assert text.startswith(
        "# Licences of posttrain/data:0.1.0\n\n## 3 Python distributions\n\n- Strong copyleft: strict.\n"
    )
    assert "- No SPDX id is sure for all their terms: silent.\n" in text
    assert "| strict | 1.0 | GPL-3.0-only | strong copyleft |" in text
    assert "| silent | 1.0 | unknown | unknown |" in text
    assert "## 1 Debian packages\n" in text
    assert "- Strong copyleft: 1.\n" in text
    assert "| bash | 5.2 | GPL-3.0-or-later | strong copyleft |" in text
    assert text.count("| mild |") == 1


def test_the_summary_counts_python_apart_from_the_base():
    assert summary("x", licence_rows(inventory())) == (
        "x: 3 Python distributions, 1 Debian packages; strong copyleft in Python: strict; without a sure SPDX id: 1"
    )
