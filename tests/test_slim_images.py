"""docker/slim.py and install.py: what an image leaves out, and that a build fails when something would miss it."""

import ast
import importlib.util
import py_compile
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name: str):
    sys.path.insert(0, str(ROOT / "docker"))
    try:
        spec = importlib.util.spec_from_file_location(f"image_{name}", ROOT / "docker" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docker"))
    return module


slim, install = load("slim"), load("install")


@pytest.fixture
def site(tmp_path):
    """A site-packages with a library, its tests, and a torch for the CPU."""
    for name, text in {
        "lib/__init__.py": "from lib import core\n",
        "lib/core.py": "def check():\n    from lib.tests import cases\n    return cases\n",
        "lib/tests/__init__.py": "",
        "lib/tests/deep/tests/__init__.py": "",
        "lib/testing.py": "",
        "torch/__init__.py": "",
        "torch/version.py": "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n",
        "torch/include/a.h": "",
        "torch/bin/test_jit": "",
        "torch/bin/TCPStoreTest": "",
        "torch/bin/protoc-3": "",
        "torch/bin/torch_shm_manager": "",
        "torch/test/some_test": "",
        "pyarrow/libarrow_flight.so.2600": "",
        "pyarrow/libarrow.so.2600": "",
        "pyarrow/fs.py": "try:\n    from pyarrow._s3fs import S3\nexcept ImportError:\n    S3 = None\n",
        "pyarrow/_s3fs.cpython-311-x86_64-linux-gnu.so": "",
        "lib-1.dist-info/licenses/tests/LICENSE": "",
        "transformers/models/bert/modeling_bert.py": "",
        "transformers/models/qwen2/modeling_qwen2.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_tests_headers_and_unused_parts_go_and_the_rest_stays(site):
    gone = {str(path.relative_to(site)) for path in slim.left_out(site)}
    assert gone == {
        "lib/tests",
        "torch/include",
        "torch/bin/test_jit",
        "torch/bin/TCPStoreTest",
        "torch/bin/protoc-3",
        "torch/test",
        "pyarrow/libarrow_flight.so.2600",
        "pyarrow/_s3fs.cpython-311-x86_64-linux-gnu.so",
    }
    slim.slim(site)
    assert not (site / "lib" / "tests").exists()
    assert (site / "lib-1.dist-info" / "licenses" / "tests" / "LICENSE").exists()


def test_torch_for_cuda_keeps_its_headers(site):
    (site / "torch" / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\n")
    assert site / "torch" / "include" not in slim.left_out(site)


def test_a_module_that_would_miss_what_went_fails_the_build(site):
    (site / "lib" / "other.py").write_text("import os\n\nclass A:\n    from .tests.deep import thing\n")
    with pytest.raises(SystemExit) as ended:
        slim.slim(site)
    assert str(ended.value).splitlines()[1:] == [
        "lib/other.py:4: lib.tests.deep",
        "lib/other.py:4: lib.tests.deep.thing",
    ]


def test_a_library_that_links_what_went_fails_the_build(site):
    (site / "pyarrow" / "libarrow.so.2600").write_bytes(b"\x7fELF\0libc.so.6\0libarrow_flight.so.2600\0")
    with pytest.raises(SystemExit, match=r"pyarrow/libarrow\.so\.2600: libarrow_flight\.so\.2600"):
        slim.slim(site)


@pytest.mark.parametrize(
    ("statement", "package", "names"),
    [
        ("import a.b, c", ("p",), ["a.b", "c"]),
        ("from a.b import c, d", ("p",), ["a.b", "a.b.c", "a.b.d"]),
        ("from . import c", ("p", "q"), ["p.q", "p.q.c"]),
        ("from ..r import c", ("p", "q"), ["p.r", "p.r.c"]),
    ],
)
def test_imported_names_are_absolute(statement, package, names):
    assert slim.imported_names(ast.parse(statement).body[0], package) == names


def test_everything_is_compiled_but_families_of_models_that_are_rarely_loaded(site):
    slim.slim(site)
    compiled = {path.name.split(".")[0] for path in site.rglob("*.pyc")}
    assert {"core", "fs", "modeling_qwen2"} <= compiled
    assert "modeling_bert" not in compiled
    # The flag 1 without 2 in bytes 4 to 7: by hash and not checked, whatever time the source has.
    assert next(site.rglob("core.*.pyc")).read_bytes()[4:8] == b"\x01\0\0\0"
    assert py_compile.PycInvalidationMode.UNCHECKED_HASH.value == 3


@pytest.mark.parametrize(("cuda", "asked"), [("None", "cuda"), ("'13.0'", "cpu")])
def test_another_build_of_torch_than_was_asked_for_is_one_line(site, cuda, asked):
    (site / "torch" / "version.py").write_text(f"__version__ = '2.13.0'\ncuda = {cuda}\n")
    with pytest.raises(SystemExit) as ended:
        install.refuse_other_build(site, asked)
    build = {"cuda": "CPU", "cpu": "CUDA"}[asked]
    assert str(ended.value) == (
        f"error: ACCELERATOR={asked}, but pip found torch 2.13.0, a {build} build; give the index that has the other "
        "as a build argument, PIP_EXTRA_INDEX_URL or PIP_INDEX_URL"
    )
    install.refuse_other_build(site, {"cuda": "cpu", "cpu": "cuda"}[asked])
