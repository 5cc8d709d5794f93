"""What a recipe calls a model: a Hub id becomes a commit that is recorded, and a comparison takes a commit only."""

import json
import shutil

import huggingface_hub
import pytest

from posttrain.core.cli import run as command
from posttrain.core.errors import RequestError
from posttrain.data import nano
from posttrain.lab.graph import plan_training
from posttrain.lab.models import ModelNotHere, refuse_unpinned, resolve_model
from posttrain.lab.recipe import load_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "somebody/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with one model, nano's base, whose branch `main` is at COMMIT; what it was asked for."""
    asked = []
    folder = tmp_path / "snapshots" / COMMIT
    shutil.copytree(nano.BASE, folder)

    def snapshot_download(model, revision, allow_patterns):
        asked.append((model, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_branch_of_the_hub_is_resolved_to_its_commit_and_stands_in_every_stage_s_identity(hub, tmp_path, revision):
    base = resolve_model(ID, revision)
    assert base.revision == base.definition()["revision"] == COMMIT
    ((_, asked, patterns),) = hub
    assert asked == revision
    assert not {"*.bin", "*.pt"} & set(patterns), "no pickles are fetched"
    said = [f"model={ID}", f"revision={json.dumps(revision)}"]
    identity = plan_training(load_recipe("nano", said), "sft", 0, tmp_path).rows[0].identity
    assert identity.definition["revision"] == COMMIT


def test_folder_is_of_no_commit_whatever_the_recipe_s_revision(tmp_path):
    assert resolve_model(str(nano.BASE), COMMIT).revision is None
    assert resolve_model("nano", COMMIT).definition() == resolve_model("nano").definition()


@pytest.mark.parametrize(("revision", "said"), [(None, "has no revision"), ("main", "has revision 'main', which can")])
@pytest.mark.parametrize("asked", [["compare", "--methods", "dpo"], ["tune", "dpo"]], ids=lambda asked: asked[0])
def test_comparison_and_tuning_of_a_hub_model_without_a_commit_are_refused_before_anything_is_fetched(
    hub, tmp_path, capsys, asked, revision, said
):
    sets = ["--set", f"model={ID}", "--set", f"revision={json.dumps(revision)}"]
    assert command([*asked, *sets, "--dry-run", "--runs", str(tmp_path / "runs")]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"model '{ID}' {said}" in told
    assert "set revision to its 40 hex digits" in told
    assert hub == []


def test_commit_of_the_hub_and_what_is_no_hub_model_may_be_compared(tmp_path):
    refuse_unpinned(ID, COMMIT)
    for model in ("nano", "random:qwen2-tiny", str(tmp_path)):
        refuse_unpinned(model, None)


def test_refusal_names_the_commit_that_lies_in_the_cache(monkeypatch):
    cached = f"/cache/snapshots/{COMMIT}/config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: cached)
    with pytest.raises(RequestError, match=f"on this machine lies {COMMIT}"):
        refuse_unpinned(ID, None)


def test_dry_run_without_the_model_still_says_what_it_will_take(tmp_path, capsys, monkeypatch):
    def away(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    asked = ["train", "dpo", "--recipe", "gsm8k", "--dry-run", "--json", "--runs", str(tmp_path / "runs")]
    assert command(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"] == [{"stage": "sft"}, {"stage": "dpo"}]
    assert "could not be had from the Hub (no network)" in found["model_not_here"]
    assert found["forecast"]["gpu"] == "NVIDIA L4 (24 GB)"
    assert all(stage["total_bytes"] > 0 for stage in found["forecast"]["stages"])
    assert command([*asked[:-3], "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    assert "Memory in GiB, of 22.0" in said.out
    assert "note: model 'Qwen/Qwen2.5-0.5B' is not a folder here" in said.err


def test_dry_run_of_a_comparison_says_what_a_seed_of_all_its_arms_will_take(tmp_path, capsys, monkeypatch):
    def away(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    asked = ["compare", "--methods", "dpo,simpo", "--recipe", "gsm8k", "--runs", str(tmp_path / "runs")]
    asked += ["--seeds", "0,1,2"]
    assert command([*asked, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tasks"], found["seconds"]) == ([], None)
    assert "could not be had from the Hub (no network)" in found["model_not_here"]
    assert [stage["stage"] for stage in found["forecast"]["stages"]] == ["sft", "dpo", "simpo"]
    assert found["seeds"] == 3
    assert command([*asked, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "Memory in GiB, of 22.0" in said.out
    hours, price = found["forecast"]["hours"], found["forecast"]["price"]
    assert f"That is of one seed; all 3 of them: {3 * hours:.2f} hours, {3 * price:.2f} USD." in said.out
    assert "note: model 'Qwen/Qwen2.5-0.5B' is not a folder here" in said.err
    assert command(asked) == 2


def test_dry_run_of_a_model_of_another_family_goes_without_a_forecast(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    asked = ["train", "dpo", "--recipe", "gsm8k", "--dry-run", "--json", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("posttrain.lab.graph.plan_training", absent)
    assert command([*asked, "--set", f"model={tmp_path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stages"] == [{"stage": "sft"}, {"stage": "dpo"}]
    assert "models of type 'gpt2' are not counted" in found["no_forecast"]
    assert "forecast" not in found


def absent(*_, **__):
    raise ModelNotHere("not here")


def test_model_that_cannot_be_had_ends_a_run(monkeypatch):
    def away(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", away)
    with pytest.raises(ModelNotHere, match="set model to a folder, or check name, revision and network"):
        resolve_model(ID)


def test_card_that_there_is_none_of_is_told_in_the_recipe():
    with pytest.raises(RequestError, match=r"recipe nano: 'gpu' must be a card that is known .*h100.* \(it is 'l5'\)"):
        load_recipe("nano", ["gpu=l5"])
