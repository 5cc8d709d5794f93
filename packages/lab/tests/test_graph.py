"""The stage graph: which stages a method needs, and what changes their identity."""

from pathlib import Path

import pytest

from posttrain.core.errors import RequestError
from posttrain.lab.graph import Plan, plan_training
from posttrain.lab.recipe import load_recipe


def plan(tmp_path: Path, *overrides: str, method: str = "ppo", seed: int = 0, external=None) -> Plan:
    return plan_training(load_recipe("nano", overrides), method, seed, tmp_path, external)


def hashes(planned: Plan) -> dict[str, str]:
    return {stage.method: stage.identity.config_hash for stage in planned.stages}


def test_ppo_on_the_reward_model_needs_all_stages(tmp_path):
    assert [stage.method for stage in plan(tmp_path).stages] == ["sft", "preferences", "rm", "ppo"]


def test_ppo_on_the_verifier_needs_no_reward_model(tmp_path):
    planned = plan(tmp_path, "reward=verifier")
    assert [stage.method for stage in planned.stages] == ["sft", "ppo"]
    assert planned.reward_model is None


def test_pairs_that_exist_need_no_preferences_stage(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    planned = plan(tmp_path, f"data.pairs={{path: {path}}}", method="rm")
    assert [stage.method for stage in planned.stages] == ["sft", "rm"]


def test_rows_are_base_sft_and_the_method(tmp_path):
    assert [row.name for row in plan(tmp_path).rows] == ["base", "sft", "ppo"]


def test_what_ppo_learns_from_is_part_of_its_name_and_hash(tmp_path):
    verifier = plan(tmp_path, "reward=verifier")
    assert verifier.rows[-1].name == "ppo (verifier)"
    assert hashes(verifier)["ppo"] != hashes(plan(tmp_path))["ppo"]
    both = plan(tmp_path, "reward={rm: 1, verifier: 0.5}")
    assert both.rows[-1].name == "ppo (rm + 0.5·verifier)"


def test_setting_of_a_stage_changes_it_and_what_follows_only(tmp_path):
    before, after = hashes(plan(tmp_path)), hashes(plan(tmp_path, "rm.lr=0.001"))
    changed = {method for method in before if before[method] != after[method]}
    assert changed == {"rm", "ppo"}


def test_data_selection_changes_the_stage(tmp_path):
    before, after = hashes(plan(tmp_path)), hashes(plan(tmp_path, "data.prompts.rows=100"))
    assert {method for method in before if before[method] != after[method]} == {"ppo"}


def test_operational_settings_change_nothing(tmp_path):
    assert hashes(plan(tmp_path)) == hashes(plan(tmp_path, "ppo.save_every=7", "sft.log_every=3"))


def test_content_of_the_base_changes_everything_and_its_place_nothing(tmp_path):
    import shutil

    from posttrain.data.nano import BASE

    copy = tmp_path / "copy"
    shutil.copytree(BASE, copy)
    assert hashes(plan(tmp_path, f"model={copy}")) == hashes(plan(tmp_path))
    config = copy / "generation_config.json"
    config.write_text(config.read_text() + " ")
    before, after = hashes(plan(tmp_path)), hashes(plan(tmp_path, f"model={copy}"))
    assert all(before[method] != after[method] for method in before)


def test_seeds_share_config_hashes_and_the_base_only(tmp_path):
    first, second = plan(tmp_path), plan(tmp_path, seed=1)
    assert hashes(first) == hashes(second)
    assert first.rows[0].run == second.rows[0].run
    assert not {stage.run.path for stage in first.stages} & {stage.run.path for stage in second.stages}


def test_reward_model_of_a_running_service_is_not_trained(tmp_path):
    external = {"rm": "digest-1", "verifier": "1"}
    planned = plan(tmp_path, external=external)
    assert [stage.method for stage in planned.stages] == ["sft", "ppo"]
    other = plan(tmp_path, external={**external, "rm": "digest-2"})
    assert hashes(planned)["ppo"] != hashes(other)["ppo"]


def test_source_that_the_running_service_lacks_is_refused(tmp_path):
    with pytest.raises(RequestError, match="REWARD_URL has no source 'verifier'"):
        plan(tmp_path, external={"rm": "d"})


def test_content_of_an_own_reward_function_enters_the_hash(tmp_path):
    path = tmp_path / "reward.py"
    seen = []
    for body in ("return 1.0", "return 2.0"):
        path.write_text(f"def short(prompt, completion, reference):\n    {body}\n")
        seen.append(hashes(plan(tmp_path, f"sources={{mine: '{path}:short'}}", "reward=mine"))["ppo"])
    assert seen[0] != seen[1]


def test_another_function_of_the_same_file_is_another_reward(tmp_path):
    path = tmp_path / "reward.py"
    path.write_text("def f(p, c, r):\n    return 1.0\n\ndef g(p, c, r):\n    return 2.0\n")
    seen = [hashes(plan(tmp_path, f"sources={{mine: '{path}:{f}'}}", "reward=mine"))["ppo"] for f in ("f", "g")]
    assert seen[0] != seen[1]


def test_another_verifier_under_the_same_name_is_another_reward(tmp_path):
    seen = [hashes(plan(tmp_path, f"sources={{mine: {name}}}", "reward=mine"))["ppo"] for name in ("gsm8k", "nano")]
    assert seen[0] != seen[1]


def test_template_that_we_set_is_part_of_the_base(tmp_path):
    """A checkpoint without generation markers gets our ChatML template: another one would give other results."""
    import json
    import shutil

    from posttrain.data.nano import BASE
    from posttrain.lab.models import resolve_model

    assert set(resolve_model("nano").definition()) == {"revision", "digest"}
    copy = tmp_path / "copy"
    shutil.copytree(BASE, copy)
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    assert {"chat_template", "eos_token"} <= set(resolve_model(str(copy)).definition())


@pytest.mark.parametrize(
    ("overrides", "method", "message"),
    [
        ((), "ppoo", r"unknown method 'ppoo' \(did you mean 'ppo'\?\)"),
        (("reward=verifyer",), "ppo", r"unknown reward source 'verifyer' \(did you mean 'verifier'\?\)"),
        (("model=/nowhere/at/all",), "sft", "model '/nowhere/at/all'"),
        (("data.preference_prompts=null",), "ppo", "set data.pairs or data.preference_prompts"),
    ],
)
def test_wrong_requests_are_refused(tmp_path, overrides, method, message):
    with pytest.raises(RequestError, match=message):
        plan(tmp_path, *overrides, method=method)


def test_model_without_safetensors_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RequestError, match="no safetensors weights"):
        plan(tmp_path, f"model={tmp_path / 'model'}")
