"""`posttrain judge run` with servers that it starts itself: a policy for missing answers, a reward model as judge."""

import json
from pathlib import Path

import psutil
import pytest

from posttrain.core import cli
from posttrain.core.files import read_jsonl, write_jsonl
from posttrain.data import nano
from posttrain.data.chat import load_tokenizer
from posttrain.trainers.models import align_special_tokens, load_sequence_classifier, save_checkpoint

pytestmark = [pytest.mark.service, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_checkpoint_against_a_file_before_a_reward_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, _ = load_sequence_classifier(nano.BASE, seed=0)
    tokenizer = load_tokenizer(nano.BASE)
    align_special_tokens(model, tokenizer)
    save_checkpoint(model, tokenizer, tmp_path / "rm")
    questions = [f"What is {number} plus 2?" for number in range(4)]
    write_jsonl(Path("b.jsonl"), [{"prompt": question, "output": "It is 5."} for question in questions])
    command = ["judge", "run", str(nano.BASE), "b.jsonl", "--judge", "reward:rm", "--max-new-tokens", "8", "--json"]

    assert cli.run(command) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["a"]["kind"], record["b"]["kind"], record["prompts"]) == ("checkpoint", "file", 4)
    assert record["rates"]["n_total"] == 4
    # A reward model sees no order.
    assert record["rates"]["bias"]["consistency"]["value"] == 1
    (kept,) = Path("runs/judge/answers").glob("*.jsonl")
    assert len(read_jsonl(kept)) == 4
    assert not [child for child in psutil.Process().children(recursive=True) if "serve" in child.cmdline()]

    assert cli.run(command) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["id"], again["rates"]) == (record["id"], record["rates"])
    assert again["games"]["asked"] == 0
