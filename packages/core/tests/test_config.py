"""Settings, YAML and overrides: what is wrong is named with its full path, value and nearest known key."""

import pytest
from pydantic import Field

from posttrain.core.config import Settings, apply_overrides, read_yaml, validate
from posttrain.core.errors import RequestError


class Inner(Settings):
    OPERATIONAL = frozenset({"save_every"})
    steps: int = Field(default=3, gt=0)
    save_every: int = 5


class Rate(Settings):
    lr: float = 0.1


class Outer(Settings):
    name: str
    ppo: Inner = Inner()


def test_unknown_key_is_refused_with_its_path_and_the_nearest_key():
    with pytest.raises(RequestError, match=r"recipe x: unknown key 'ppo.stps' \(did you mean 'steps'\?\)"):
        validate(Outer, {"name": "a", "ppo": {"stps": 1}}, "recipe x")


def test_unknown_key_far_from_all_lists_what_there_is():
    with pytest.raises(RequestError, match=r"unknown key 'zzz' \(choose from: name, ppo\)"):
        validate(Outer, {"name": "a", "zzz": 1}, "here")


def test_wrong_value_is_named_with_what_is_allowed():
    with pytest.raises(RequestError, match=r"'ppo.steps' input should be greater than 0 \(it is 0\)"):
        validate(Outer, {"name": "a", "ppo": {"steps": 0}}, "here")


def test_missing_key_is_named():
    with pytest.raises(RequestError, match="'name' is missing"):
        validate(Outer, {}, "here")


def test_override_reaches_into_sections_and_reads_yaml():
    assert apply_overrides({"a": {"b": 1}}, ["a.b=2", "c.d=[x, y]"]) == {"a": {"b": 2}, "c": {"d": ["x", "y"]}}


def test_override_leaves_the_original_alone():
    original = {"a": {"b": 1}}
    apply_overrides(original, ["a.b=2"])
    assert original == {"a": {"b": 1}}


def test_override_fills_an_empty_section():
    assert apply_overrides({"a": None}, ["a.b=1"]) == {"a": {"b": 1}}


@pytest.mark.parametrize("override", ["novalue", "=1", "a..b=1"])
def test_malformed_override_says_the_form(override):
    with pytest.raises(RequestError, match="key=value"):
        apply_overrides({}, [override])


def test_override_below_a_value_is_refused():
    with pytest.raises(RequestError, match=r"'a' is a value \(1\), not a section"):
        apply_overrides({"a": 1}, ["a.b=2"])


def test_override_that_is_no_yaml_is_refused():
    with pytest.raises(RequestError, match="not a YAML value"):
        apply_overrides({}, ["a=[1"])


@pytest.mark.parametrize(("content", "message"), [(b"- 1\n", "mapping"), (b"a: [", "YAML"), (b"\xff\xfe\x00", "YAML")])
def test_file_without_a_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=message):
        read_yaml(path)


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
def test_a_number_that_is_not_finite_is_refused(number):
    with pytest.raises(RequestError, match=r"'lr' input should be a finite number \(it is -?(inf|nan)\)"):
        validate(Rate, apply_overrides({}, [f"lr={number}"]), "here")


def test_a_folder_is_no_file_of_settings(tmp_path):
    with pytest.raises(RequestError, match=f"^cannot read {tmp_path}: Is a directory$"):
        read_yaml(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RequestError, match=r"absent\.yaml does not exist"):
        read_yaml(tmp_path / "absent.yaml")


def test_definition_leaves_operational_settings_out():
    assert Inner(steps=4, save_every=9).definition() == {"steps": 4}


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Inner().steps = 4


def test_override_of_a_section_leaves_those_that_a_yaml_alias_made_of_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("grpo: &group {steps: 100, data: [{rows: 1}]}\nrloo: *group\n")
    changed = apply_overrides(read_yaml(path), ["grpo.steps=2"])
    assert (changed["grpo"]["steps"], changed["rloo"]["steps"]) == (2, 100)
    assert changed["grpo"]["data"] is not changed["rloo"]["data"]
