"""Kernels made beforehand: which one a processor takes, that its bits are those of one compiled here, what is told."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rollout import native_engine as engine_module
from posttrain.rollout.native import build, kernel, levels, prebuilt
from posttrain.rollout.native.build import NoKernel
from posttrain.rollout.native.kernel import Kernel
from posttrain.rollout.native.levels import LEVELS, runnable
from posttrain.rollout.sampling import Sampling

V2 = ["fpu", "sse", "sse2", "pni", "ssse3", "cx16", "sse4_1", "sse4_2", "popcnt", "lahf_lm"]
V3 = [*V2, "movbe", "xsave", "avx", "f16c", "abm", "bmi1", "avx2", "bmi2", "fma"]
V4 = [*V3, "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"]


def test_a_processor_runs_the_levels_whose_features_it_has():
    assert runnable("x86_64", V4) == ["x86-64-v4", "x86-64-v3"]
    assert runnable("x86_64", V3) == ["x86-64-v3"]
    assert runnable("x86_64", V2) == []
    assert runnable("aarch64", ["fp", "asimd", "crc32"]) == ["armv8-a"]
    assert runnable("riscv64", V4) == []


@given(st.sampled_from(sorted(LEVELS["x86_64"]["x86-64-v4"])))
def test_one_missing_feature_is_a_missing_level(feature):
    left = runnable("x86_64", set(V4) - {feature})
    assert left == (["x86-64-v3"] if feature.startswith("avx512") else [])


def test_features_are_read_as_linux_lists_them(monkeypatch):
    monkeypatch.setattr(levels, "processor", lambda: "flags\t\t: " + " ".join(V3))
    monkeypatch.setattr(levels.platform, "machine", lambda: "x86_64")
    assert levels.levels_here() == ["x86-64-v3"]
    monkeypatch.setattr(levels, "processor", lambda: "arm")
    assert levels.levels_here() == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Kernels of every level of this architecture."""
    if shutil.which("g++") is None or not levels.levels_here():
        pytest.skip("no g++, or a processor without a known level")
    folder = tmp_path_factory.mktemp("kernels")
    done = subprocess.run(
        [sys.executable, "-m", "posttrain.rollout.native.build", "--into", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """No compiler and nothing compiled before: what is found is found in POSTTRAIN_KERNELS, given by a call."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield lambda folder: monkeypatch.setenv("POSTTRAIN_KERNELS", str(folder))
    build.library.cache_clear()


def test_the_manifest_says_what_the_kernels_were_made_of(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["kernels"]) == set(LEVELS[manifest["machine"]])
    assert all((folder / name).is_file() for name in manifest["kernels"].values())
    assert "-ffp-contract=fast" in manifest["flags"]
    assert "++" in manifest["compiler"]
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["kernels"].values()}


def test_without_a_compiler_the_best_prebuilt_kernel_is_taken(folder, unbuilt):
    unbuilt(folder)
    assert build.library() == folder / f"kernel-{levels.levels_here()[0]}.so"


def test_a_processor_without_the_best_level_takes_the_next(folder, unbuilt, monkeypatch):
    unbuilt(folder)
    worst = levels.levels_here()[-1]
    monkeypatch.setattr(build, "levels_here", lambda: [worst])
    assert build.library() == folder / f"kernel-{worst}.so"


def test_a_prebuilt_kernel_gives_the_bits_of_one_compiled_here(folder, model, native_engine, monkeypatch):
    prompts = [list(range(3, 3 + length)) for length in (1, 2, 17, 33, 90)]

    def outcome(path=None):
        if path:
            monkeypatch.setattr(kernel, "library", lambda: path)
            loaded = Kernel()
            monkeypatch.setattr(engine_module, "load_kernel", lambda: loaded)
        engine = native_engine(model, range(2, 40), max_batch=7)
        groups = engine.generate(prompts, Sampling(max_tokens=40), n=3, seed=5)
        return [(sample.token_ids, sample.logprobs) for group in groups for sample in group]

    here = outcome()
    assert outcome(folder / f"kernel-{levels.levels_here()[0]}.so") == here


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "of another version"}, "made of other sources than are installed"),
        ({"kernels": {"x86-64-v9": "kernel.so"}}, "has kernels for x86-64-v9; this processor runs"),
    ],
)
def test_kernels_that_do_not_fit_are_not_taken(folder, unbuilt, tmp_path, change, reason):
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text()) | change
    (copy / "manifest.json").write_text(json.dumps(manifest))
    unbuilt(copy)
    with pytest.raises(NoKernel, match=rf"{re.escape(reason)}.*, and there is no C\+\+ compiler"):
        build.library()


@pytest.mark.parametrize(("text", "reason"), [(None, "No such file"), ("{", "is no JSON"), ("[]", "is no manifest")])
def test_folder_without_a_manifest_is_told(unbuilt, tmp_path, text, reason):
    if text:
        (tmp_path / "manifest.json").write_text(text)
    unbuilt(tmp_path)
    with pytest.raises(NoKernel, match=rf"POSTTRAIN_KERNELS=.*{reason}.*, and there is no C\+\+ compiler"):
        build.library()


COMPILER = """#!/bin/sh
case "$*" in --version) echo stand-in++ 1; exit;; *{refused}*) echo "unknown level" >&2; exit 1;; esac
march=none
while [ "$1" != -o ]; do case "$1" in -march=*) march=$1;; esac; shift; done
echo $march > "$2"
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A compiler that writes what it was asked to compile for, and refuses command lines that hold a text."""

    def use(refused):
        compiler = tmp_path / "stand-in"
        compiler.write_text(COMPILER.format(refused=refused))
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(build, "levels_here", lambda: ["x86-64-v4", "x86-64-v3"])
        build.library.cache_clear()

    yield use
    build.library.cache_clear()


def test_kernels_that_do_not_fit_are_compiled_where_that_is_possible(stand_in, monkeypatch, tmp_path):
    stand_in("-march=nothing")
    monkeypatch.setenv("POSTTRAIN_KERNELS", str(tmp_path))
    assert build.library().parent == tmp_path / "cache" / "posttrain"
    assert build.library().read_text() == "-march=x86-64-v4\n"


def test_a_compiler_that_knows_no_levels_compiles_for_this_processor(stand_in, monkeypatch):
    """As g++ 10, which has no x86-64-v3."""
    stand_in("-march=x86")
    monkeypatch.delenv("POSTTRAIN_KERNELS", raising=False)
    assert build.library().read_text() == "-march=native\n"


def test_library_that_cannot_be_loaded_is_no_kernel(monkeypatch, tmp_path):
    broken = tmp_path / "kernel.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(kernel, "library", lambda: broken)
    with pytest.raises(NoKernel, match="kernel.so cannot be loaded"):
        Kernel()


def test_architecture_without_levels_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: "riscv64")
    with pytest.raises(NoKernel, match="no level of riscv64 is known"):
        prebuilt.prebuild(tmp_path)
