"""posttrain runs export: what is written loads elsewhere, its card says what was measured, nothing is overwritten."""

import json
import shutil

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from posttrain.core.cli import run as command
from posttrain.core.results import append_result
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.nano import BASE as NANO

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SNAPSHOT = f"/home/somebody/.cache/huggingface/hub/models--Qwen--Qwen2.5-0.5B/snapshots/{COMMIT}"
ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0"},
    "git_commit": "f" * 40,
    "hardware": {"machine": "x86_64", "processor": "EPYC", "cores": 2, "memory_gib": 8, "accelerators": []},
}


def make_run(root, stage, start, parents=(), seconds=36.0, summary=None, data="HuggingFaceH4/ultrachat_200k"):
    identity = StageIdentity(stage, 1, {}, 7, tuple(parents))
    run = RunDirectory.of(root, "real", identity)
    shutil.copytree(NANO, run.checkpoint)
    (run.checkpoint / "model.safetensors").chmod(0o600)
    config = {
        "stage": stage,
        "start": start,
        "source": {"path": data},
        "settings": {"lr": 0.5, "file": "/data/mine.py"},
    }
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    conditions = {"base.revision": COMMIT, "base.digest": "d" * 64, "data.prompts": {"path": data}}
    run.finish(
        {
            "stage": stage,
            "method": stage,
            "seed": 7,
            "config_hash": identity.config_hash,
            "fingerprint": identity.fingerprint,
            "parents": [parent.fingerprint for parent in parents],
            "conditions": {**conditions, "data.pairs": {"path": "pairs.jsonl"}},
            "arm": {"name": f"{stage}-variant", "learns_from": "rm", "trials": 4},
            "summary": {"totals": {"tokens_trained": 1234567}, **(summary or {})},
            "cost": {"wall_seconds": seconds, "core_seconds": 100 * seconds, "peak_memory_bytes": 2**30},
            "environment": ENVIRONMENT,
        }
    )
    return run, identity


@pytest.fixture
def runs(tmp_path):
    """SFT on a Hub model, and DPO that began with it and is evaluated."""
    root = tmp_path / "runs"
    sft, before = make_run(root, "sft", SNAPSHOT)
    held_out = {"n": 50, "accuracy": 0.75, "accuracy_standard_error": 0.0612}
    dpo, identity = make_run(root, "dpo", str(sft.checkpoint), [before], summary={"held_out": held_out})
    for task, value in {"gsm8k": 0.3495, "ifeval": 0.1275}.items():
        key = {"fingerprint": identity.fingerprint, "task": task, "version": 1, "few_shot": 5, "limit": None}
        measured = {"exact_match|strict": {"value": value, "standard_error": 0.0131}}
        append_result(root / "metrics.jsonl", {**key, "backend": "hf", "n": 1319, "metrics": measured})
    other = {**key, "fingerprint": "e" * 64, "task": "not ours"}
    append_result(root / "metrics.jsonl", {**other, "backend": "hf", "n": 1, "metrics": {"acc": {"value": 1.0}}})
    return {"root": root, "sft": sft, "dpo": dpo}


def export(runs, stage, *arguments):
    return command(["runs", "export", runs[stage].path.name, *map(str, arguments), "--runs", str(runs["root"])])


def card_of(folder):
    """Metadata and text of a model card, as the Hub reads it."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_export_loads_and_answers_as_the_run_does(runs, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert export(runs, "dpo", tmp_path / "out") == 0
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f) for f in (runs["dpo"].checkpoint, tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 3?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        assert torch.equal(ours(**prompt).logits, theirs(**prompt).logits)
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o444 == 0o444


def test_the_card_has_the_rows_with_their_errors_and_the_hubs_metadata(runs, tmp_path):
    assert export(runs, "dpo", tmp_path / "out", "--license", "apache-2.0") == 0
    head, text = card_of(tmp_path / "out")
    assert head == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "datasets": ["HuggingFaceH4/ultrachat_200k"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["posttrain", "dpo"],
    }
    assert "| gsm8k | exact_match\\|strict | 0.3495 ± 0.0131 | 1319 | 5 | all | hf |" in text
    assert "| held-out pairs, implied | reward accuracy | 0.7500 ± 0.0612 | 50 |" in text
    assert "not ours" not in text
    assert "In all 2.000 core-hours; 1,234,567 tokens trained" in text  # two stages of 3600 core-seconds
    assert f"revision {COMMIT}" in text
    assert "lr: 0.5" in text


def test_no_place_of_the_machine_is_in_an_export(runs, tmp_path):
    (runs["dpo"].path / "adapter").mkdir()
    (runs["dpo"].path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(runs["sft"].checkpoint)})
    )
    assert export(runs, "dpo", tmp_path / "out") == 0
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            assert not any(place in file.read_text() for place in (str(tmp_path), "/home/somebody", "/data/")), file
    start = f"real/sft/{runs['sft'].path.name}"
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["start"] == start
    settings = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == start


def test_an_adapter_goes_alone_with_its_tokenizer_and_the_model_that_it_belongs_on(runs, tmp_path):
    folder = runs["sft"].path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "base_model_name_or_path": SNAPSHOT}))
    (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    assert export(runs, "sft", tmp_path / "out", "--adapter") == 0
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= files
    assert not files & {"model.safetensors", "config.json"}
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings == {"r": 16, "base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}
    head, text = card_of(tmp_path / "out")
    assert (head["library_name"], head["base_model"]) == ("peft", "Qwen/Qwen2.5-0.5B")
    assert 'from_pretrained("Qwen/Qwen2.5-0.5B")' in text


def test_an_adapter_on_a_run_without_a_hub_id_says_so_unless_it_is_given(runs, tmp_path):
    folder = runs["dpo"].path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    assert export(runs, "dpo", tmp_path / "out", "--adapter") == 0
    head, text = card_of(tmp_path / "out")
    assert "base_model" not in head  # Qwen is not what it is put onto
    assert "which has no Hub id" in text
    assert export(runs, "dpo", tmp_path / "out", "--adapter", "--force", "--base-model", "me/my-sft") == 0
    assert card_of(tmp_path / "out")[0]["base_model"] == "me/my-sft"


def test_a_reward_model_is_exported_as_a_classifier(runs, tmp_path, capsys):
    accuracy = {"all": {"accuracy": 0.8658, "standard_error": 0.0109, "n": 1863}}
    run, _ = make_run(runs["root"], "rm", SNAPSHOT, summary={"accuracy": accuracy})
    config = json.loads((run.checkpoint / "config.json").read_text())
    config["architectures"] = ["Qwen2ForSequenceClassification"]
    (run.checkpoint / "config.json").write_text(json.dumps(config))
    assert export({**runs, "rm": run}, "rm", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["base_model"] == "Qwen/Qwen2.5-0.5B"
    head, text = card_of(tmp_path / "out")
    assert (head["pipeline_tag"], head["tags"]) == ("text-classification", ["posttrain", "rm", "reward-model"])
    assert "| held-out pairs, all | reward accuracy | 0.8658 ± 0.0109 | 1863 |" in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text


def test_the_card_of_a_reward_models_adapter_has_code_that_loads_it(runs, tmp_path):
    run, _ = make_run(runs["root"], "rm", SNAPSHOT, summary={"reward_offset": -0.5})
    model = AutoModelForSequenceClassification.from_pretrained(NANO, num_labels=1)
    model.config.save_pretrained(run.checkpoint)
    config = json.loads((run.checkpoint / "config.json").read_text())
    config["architectures"] = ["Qwen2ForSequenceClassification"]
    (run.checkpoint / "config.json").write_text(json.dumps(config))
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"])
    get_peft_model(model, lora).save_pretrained(run.path / "adapter")
    assert export({**runs, "rm": run}, "rm", tmp_path / "out", "--adapter") == 0
    text = card_of(tmp_path / "out")[1]
    assert "less `reward_offset`, -0.5" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace("Qwen/Qwen2.5-0.5B", str(NANO)).replace("FOLDER_OR_HUB_ID", str(tmp_path / "out"))
    loaded = {}
    exec(code, loaded)
    assert loaded["model"].base_model.model.score.weight.shape == (1, 128)


def test_a_run_without_evaluation_says_so(runs, tmp_path, capsys):
    assert export(runs, "sft", tmp_path / "out") == 0
    assert "Not evaluated." in card_of(tmp_path / "out")[1]
    assert "no evaluation of this run" in capsys.readouterr().err


def test_what_is_there_is_replaced_only_by_force_and_only_if_it_is_an_export(runs, tmp_path, capsys):
    assert export(runs, "dpo", tmp_path / "out") == 0
    assert export(runs, "dpo", tmp_path / "out") == 2
    assert "--force" in capsys.readouterr().err
    (tmp_path / "out" / "stale").touch()
    assert export(runs, "dpo", tmp_path / "out", "--force") == 0
    assert not (tmp_path / "out" / "stale").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    assert export(runs, "dpo", tmp_path / "mine", "--force") == 2
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_force_replaces_neither_a_runs_checkpoint_nor_a_repository(runs, tmp_path, capsys):
    checkpoint = runs["sft"].checkpoint
    for name in ("README.md", "provenance.json"):  # as a trainer leaves it
        (checkpoint / name).write_text("{}")
    before = {path.name for path in checkpoint.iterdir()}
    for place in (checkpoint, runs["sft"].path):
        assert export(runs, "dpo", place, "--force") == 2
        assert "is no earlier export" in capsys.readouterr().err
    assert {path.name for path in checkpoint.iterdir()} == before
    assert export(runs, "dpo", tmp_path / "clone") == 0
    (tmp_path / "clone" / ".git").mkdir()
    assert export(runs, "dpo", tmp_path / "clone", "--force") == 2
    assert "holds .git/" in capsys.readouterr().err
    assert (tmp_path / "clone" / ".git").is_dir()


def test_what_fails_half_way_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("posttrain.lab.export_command.shutil.copyfile", full)
    assert export(runs, "dpo", tmp_path / "out") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.provenance_path.unlink(), "only a finished one is exported"),
        (lambda run: shutil.rmtree(run.checkpoint), "has no checkpoint"),
    ],
)
def test_a_run_that_has_nothing_to_export_is_refused(runs, tmp_path, capsys, change, said):
    change(runs["dpo"])
    assert export(runs, "dpo", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_adapter_and_no_hub_id_are_refused(runs, tmp_path, capsys):
    assert export(runs, "dpo", tmp_path / "out", "--adapter") == 2
    assert "it trained all weights" in capsys.readouterr().err
    assert export(runs, "dpo", tmp_path / "out", "--base-model", "not an id") == 2
    assert "is no Hub id" in capsys.readouterr().err
