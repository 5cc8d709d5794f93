"""The shipped base checkpoint is what its command makes, and the command makes it or says why not."""

import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.nano import BASE, GENERATOR_VERSION
from posttrain.trainers import nano_base
from posttrain.trainers.nano_base import Pretraining, batches, build_model, pretrain

pytestmark = pytest.mark.long

TOLERANCE = 0.02
"""Nats. Muon's bfloat16 products round differently on processors without bfloat16 instructions."""

STEPS = 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BASE / "tokenizer.json"))


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((BASE / "base_losses.json").read_text(encoding="utf-8"))


def test_first_steps_give_the_recorded_losses(tokenizer, record) -> None:
    settings = Pretraining(**record["settings"])
    _, losses = pretrain(settings, tokenizer, stop_after=STEPS)
    assert losses == pytest.approx(record["losses"][:STEPS], abs=TOLERANCE)
    assert record["losses"][0] - record["losses"][STEPS - 1] > 10 * TOLERANCE  # the tolerance could see a standstill


def test_the_shipped_base_was_made_by_these_defaults(record) -> None:
    assert Pretraining(**record["settings"]) == Pretraining()
    assert record["generator_version"] == GENERATOR_VERSION


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tokenizer) -> None:
    one, again, other = (pretrain(Pretraining(seed=seed), tokenizer, stop_after=2)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_the_shipped_base_is_a_small_plain_qwen2() -> None:
    assert sum(file.stat().st_size for file in BASE.iterdir()) <= 4_000_000
    model = AutoModelForCausalLM.from_pretrained(BASE)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.num_parameters() < 1_000_000
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.max_position_embeddings >= 1_024


def test_the_shipped_base_calculates() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    sums = [(a, b) for a in range(5, 14) for b in range(3, 12)]
    right = 0
    for a, b in sums:
        ids = tokenizer(f"7*2=14 20-6=14 {a}+{b}=", return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        right += tokenizer.decode(out).split(" ")[0] == str(a + b)
    assert right / len(sums) > 0.9


def test_batches_continue_one_another(tokenizer) -> None:
    settings = Pretraining(rows=2, length=16)
    stream = batches(settings, tokenizer)
    first, second = next(stream), next(stream)
    assert first.shape == (2, 17)
    assert first[0, -1] == first[1, 0]
    assert first[1, -1] == second[0, 0]


def test_weights_depend_on_the_seed_alone(tokenizer) -> None:
    torch.manual_seed(1)
    one = build_model(Pretraining(), tokenizer)
    torch.manual_seed(2)
    assert torch.equal(one.lm_head.weight, build_model(Pretraining(), tokenizer).lm_head.weight)


def test_the_command_writes_a_whole_checkpoint(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(nano_base, "Pretraining", lambda **given: Pretraining(rows=1, length=32, warmup=2, **given))
    nano_base.main(["--out", str(tmp_path / "base"), "--seed", "3", "--steps", "5"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "base")
    assert {file.name for file in (tmp_path / "base").iterdir()} == {file.name for file in BASE.iterdir()}
    assert "seed 3: 5 steps" in (tmp_path / "base" / "README.md").read_text(encoding="utf-8")
    assert len(json.loads((tmp_path / "base" / "base_losses.json").read_text(encoding="utf-8"))["losses"]) == 5
    AutoModelForCausalLM.from_pretrained(tmp_path / "base")


@pytest.mark.parametrize("arguments", [["--steps", "5"], ["--steps", "many"], ["--sed", "1"]])
def test_a_wrong_request_exits_with_status_two_and_writes_nothing(arguments, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        nano_base.main([*arguments, "--out", str(tmp_path / "base")])
    assert ended.value.code == 2
    assert arguments[0].lstrip("-")[:3] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
