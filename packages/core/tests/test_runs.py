"""Identities and run directories: what is the same experiment, the same run, and when it is finished."""

import json

import pytest

from posttrain.core.errors import WorkError
from posttrain.core.hashing import digest_checkpoint, digest_json
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.core.seeds import derive_seed

SFT = StageIdentity("sft", 1, {"lr": 1e-3, "base": {"digest": "abc", "revision": None}}, seed=0)


@pytest.mark.parametrize(
    "other",
    [
        StageIdentity("rm", 1, SFT.definition, 0),
        StageIdentity("sft", 2, SFT.definition, 0),
        StageIdentity("sft", 1, {**SFT.definition, "lr": 2e-3}, 0),
        StageIdentity("sft", 1, {**SFT.definition, "base": {"digest": "abd", "revision": None}}, 0),
        StageIdentity("sft", 1, {**SFT.definition, "base": {"digest": "abc", "revision": "main"}}, 0),
        StageIdentity("sft", 1, SFT.definition, 0, parents=(SFT,)),
    ],
)
def test_each_part_of_the_definition_changes_both_hashes(other):
    assert other.config_hash != SFT.config_hash
    assert other.fingerprint != SFT.fingerprint


def test_seed_changes_the_fingerprint_and_not_the_config_hash():
    other = StageIdentity("sft", 1, SFT.definition, seed=1)
    assert other.config_hash == SFT.config_hash
    assert other.fingerprint != SFT.fingerprint


def test_parents_seed_reaches_the_childs_fingerprint():
    children = [
        StageIdentity("ppo", 1, {}, 0, parents=(StageIdentity("sft", 1, SFT.definition, seed),)) for seed in (0, 1)
    ]
    assert children[0].config_hash == children[1].config_hash
    assert children[0].fingerprint != children[1].fingerprint


def test_order_of_keys_does_not_matter():
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})


def test_checkpoint_digest_sees_weights_and_not_provenance(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = digest_checkpoint(tmp_path)
    (tmp_path / "provenance.json").write_text("{}")
    (tmp_path / "README.md").write_text("card")
    assert digest_checkpoint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert digest_checkpoint(tmp_path) != first


def test_directory_is_named_by_recipe_stage_and_fingerprint(tmp_path):
    run = RunDirectory.of(tmp_path, "nano", SFT)
    assert run.path == tmp_path / "nano" / "sft" / SFT.fingerprint[:12]
    assert run.root == tmp_path


def test_run_is_finished_when_provenance_is_there(tmp_path):
    run = RunDirectory.of(tmp_path, "nano", SFT)
    assert not run.finished
    run.finish({"seconds": 1.5})
    assert run.finished
    assert json.loads(run.provenance_path.read_text()) == {"seconds": 1.5}


def test_second_writer_is_refused_at_once(tmp_path):
    run = RunDirectory.of(tmp_path, "nano", SFT)
    with run.lock(), pytest.raises(WorkError, match="another process"), RunDirectory(run.path).lock():
        pass
    with run.lock():
        pass


def test_derived_seeds_are_63_bit_and_tell_neighbours_and_types_apart():
    seeds = [derive_seed(0, "rollout", step) for step in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("1") != derive_seed(1)
