"""A user's own reward functions: from a file, from an installed package, and what is refused."""

import difflib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from posttrain.core.hashing import digest_file
from posttrain.reward_model.functions import spec
from posttrain.reward_model.functions.loading import load_function
from posttrain.reward_model.functions.spec import UserFunction
from posttrain.reward_model.sources import resolve


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("def brevity(prompt, completion, reference):\n    return -len(completion) / 100\n\nnot_one = 3\n")
    return path


def test_function_of_a_file_scores_and_its_version_is_the_files_digest_and_its_name(file: Path):
    found, models = resolve({"mine": f"{file}:brevity"})
    assert load_function(found["mine"])("p", "x" * 50, None) == -0.5
    assert found["mine"].version == f"{digest_file(file)}:brevity"
    assert models == {}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{file}:brevty", "did you mean 'brevity'"),
        ("{file}:not_one", "is not a function"),
        ("{file}", "names no function"),
        ("{file}.missing.py:f", "cannot be read"),
    ],
)
def test_a_bad_function_spec_is_refused_with_what_to_do(file: Path, spec: str, says: str):
    with pytest.raises(RequestError, match=says):
        load_function(resolve({"mine": spec.format(file=file)})[0]["mine"])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def f(completion):\n    return 1.0\n", "must take three arguments"),
        ("import no_such_module\n", "cannot be imported: ModuleNotFoundError"),
        ("def f(:\n", "cannot be imported: SyntaxError"),
        ("raise SystemExit(0)\n", "cannot be imported: SystemExit"),
    ],
)
def test_a_file_that_cannot_serve_is_refused(tmp_path: Path, source: str, says: str):
    path = tmp_path / "bad.py"
    path.write_text(source)
    found, _ = resolve({"mine": f"{path}:f"})
    with pytest.raises(RequestError, match=says):
        load_function(found["mine"])


def test_a_built_in_name_cannot_be_taken(file: Path):
    with pytest.raises(RequestError, match="'gsm8k' exists already"):
        resolve({"gsm8k": f"{file}:brevity"})


def test_a_verifier_that_is_there_may_get_a_second_name():
    verifiers, _ = resolve({"gold": "verifier", "gsm8k": "gsm8k"})
    assert verifiers["gold"] is verifiers["verifier"]


def test_entry_point_of_an_installed_package_is_a_source(monkeypatch: pytest.MonkeyPatch):
    entry = EntryPoint("ratio", "difflib:SequenceMatcher", spec.GROUP)
    monkeypatch.setattr(spec, "entry_points", lambda group: [entry])
    found, _ = resolve({})
    assert found["ratio"].version == "difflib:SequenceMatcher"
    assert load_function(found["ratio"]) is difflib.SequenceMatcher


def test_a_broken_entry_point_is_named():
    gone = UserFunction("gone", "1", entry_point="no_such_module:f")
    with pytest.raises(RequestError, match="entry point 'gone = no_such_module:f'"):
        load_function(gone)
