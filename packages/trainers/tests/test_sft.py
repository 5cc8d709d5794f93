"""Supervised fine-tuning on a tiny model: loss, packing, micro batches, and what a stage leaves behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTTrainer

from posttrain.core.errors import RequestError
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.sources import Source
from posttrain.trainers import sft
from posttrain.trainers.demonstrations import IGNORED, demonstrations
from posttrain.trainers.models import align_special_tokens, load_policy
from posttrain.trainers.quiet import quiet
from posttrain.trainers.stage import StageInputs, run_stage

pytestmark = pytest.mark.long

QUICK = {"max_length": 96, "batch_size": 8, "epochs": 2, "log_every": 1, "eval_every": 4, "save_every": 4}


@pytest.fixture
def run_sft(tmp_path, tiny_checkpoint, conversations, jsonl):
    data = jsonl("conversations.jsonl", conversations)

    def run(name="run", **settings):
        identity = StageIdentity("sft", sft.METHOD.version, {"settings": settings}, 0)
        inputs = StageInputs(
            RunDirectory(tmp_path / name), seed=0, start=tiny_checkpoint, source=Source(path=data), threads=1
        )
        return inputs.run, run_stage("sft", sft.Settings(**{**QUICK, **settings}), inputs, identity)

    return run


@pytest.fixture
def trainer_of(tmp_path, tiny_checkpoint, tiny_tokenizer, conversations):
    """A trainer over the conversations that has not trained yet, and their demonstrations."""

    def make(**settings):
        model = load_policy(tiny_checkpoint)
        align_special_tokens(model, tiny_tokenizer)
        chosen = sft.Settings(**{**QUICK, **settings})
        data = demonstrations(tiny_tokenizer, conversations, chosen.max_length)
        inputs = StageInputs(RunDirectory(tmp_path / "trainer"), seed=0, start=tiny_checkpoint)
        with quiet():
            trainer, _ = sft.build_trainer(chosen, inputs, model, tiny_tokenizer, data)
        return trainer, data

    return make


def test_held_out_loss_is_the_mean_over_all_assistant_tokens(tiny_checkpoint, tiny_tokenizer, conversations):
    model = load_policy(tiny_checkpoint).train()
    data = demonstrations(tiny_tokenizer, conversations[:7], 96)
    losses = []
    for row in data.rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        losses += (-logprobs[labels[1:] != IGNORED]).tolist()
    result = sft.held_out_loss(model, tiny_tokenizer, data, batch_size=3)
    assert result["held_out_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result["held_out_perplexity"] == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-4)
    assert model.training


def batch_of(trainer, rows):
    return trainer.data_collator([trainer.train_dataset[row] for row in rows])


def test_loss_goes_down_and_weights_change(run_sft, tiny_checkpoint):
    run, provenance = run_sft(epochs=6)
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    held_out = [row["held_out_loss"] for row in rows if "held_out_loss" in row]
    assert held_out[-1] < held_out[0]
    assert provenance["summary"]["held_out_loss"] == pytest.approx(held_out[-1])
    assert provenance["summary"]["held_out_perplexity"] == pytest.approx(torch.tensor(held_out[-1]).exp().item())
    before, after = load_file(tiny_checkpoint / "model.safetensors"), load_file(run.checkpoint / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if "layernorm" not in name)


def test_the_checkpoint_is_a_standard_folder(run_sft, tiny_tokenizer):
    run, _ = run_sft(epochs=1)
    tokenizer = AutoTokenizer.from_pretrained(run.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(run.checkpoint)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tiny_tokenizer.eos_token_id
    assert model.config.pad_token_id == tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id
    assert not run.state.exists()


def test_a_step_s_row_says_what_it_did(run_sft):
    run, _ = run_sft(epochs=1)
    row = json.loads(run.metrics_path.read_text().splitlines()[0])
    assert {"step", "loss", "lr", "muon_lr", "grad_norm", "tokens", "tokens_per_second", "seconds"} <= row.keys()
    assert (row["lr"], row["muon_lr"]) == (pytest.approx(2e-3), pytest.approx(0.01))


def test_tokens_trained_count_no_padding(run_sft, tiny_tokenizer, conversations):
    _run, provenance = run_sft(epochs=2, held_out=0.1)
    data = demonstrations(tiny_tokenizer, conversations, 96)
    counted = provenance["summary"]["totals"]["tokens_trained"]
    held_out_tokens = sum(data.lengths) - counted / 2
    assert 0 < held_out_tokens < 6 * max(data.lengths)
    assert counted % 2 == 0


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_equals_trl_s(trainer_of, packing):
    trainer, _ = trainer_of(packing=packing)
    batch = batch_of(trainer, range(3))
    ours = trainer.compute_loss(trainer.model, dict(batch))
    trl = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch))
    assert ours.item() == pytest.approx(trl.item(), rel=1e-6)


def test_packed_tokens_have_the_loss_that_they_have_alone(trainer_of):
    trainer, data = trainer_of(packing=True, max_length=96)
    model = trainer.model.eval()
    alone = {}
    for row in data.rows:
        ids = torch.tensor(row["input_ids"])
        logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        alone[tuple(row["input_ids"])] = [
            (t, p) for t, p in zip(row["labels"][1:], logprobs.tolist(), strict=True) if t != IGNORED
        ]
    batch = batch_of(trainer, range(4))
    lengths = [length for row in range(4) for length in trainer.train_dataset[row]["seq_lengths"]]
    assert len(lengths) > 4  # several documents a row, else nothing is tested
    labels = batch.pop("labels")[0]
    logits = model(**batch).logits[0]
    start = 0
    for length in lengths:
        ids = batch["input_ids"][0, start : start + length]
        packed = logits[start : start + length - 1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        own = labels[start + 1 : start + length]
        got = [(t, p) for t, p in zip(own.tolist(), packed.tolist(), strict=True) if t != IGNORED]
        expected = alone[tuple(ids.tolist())]
        assert [t for t, _ in got] == [t for t, _ in expected]
        assert [p for _, p in got] == pytest.approx([p for _, p in expected], abs=1e-5)
        # A document's first token would be predicted from the document before it.
        assert labels[start] == IGNORED
        start += length


def weights_after(trainer, steps):
    trainer.args.save_strategy = "no"
    trainer.args.max_steps = steps
    with quiet():
        trainer.train()
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_the_update_does_not_depend_on_the_micro_batch(trainer_of):
    options = {"optimizer": "adamw", "lr": 1e-3, "bucket": 1}
    whole = weights_after(trainer_of(**options)[0], 3)
    split = weights_after(trainer_of(micro_batch_size=2, **options)[0], 3)
    for name in whole:
        assert torch.allclose(whole[name], split[name], atol=2e-5), name


def test_packing_trains_on_the_same_tokens(run_sft):
    plain, packed = run_sft("plain", epochs=2)[1], run_sft("packed", epochs=2, packing=True)[1]
    assert packed["summary"]["totals"]["tokens_trained"] == plain["summary"]["totals"]["tokens_trained"]
    assert packed["summary"]["held_out_loss"] == pytest.approx(plain["summary"]["held_out_loss"], rel=0.1)


def test_a_finished_stage_is_not_run_again(run_sft):
    run, provenance = run_sft(epochs=1)
    stamp = (run.checkpoint / "model.safetensors").stat().st_mtime_ns
    assert run_sft(epochs=1)[1] == provenance
    assert (run.checkpoint / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_run_s_directory_is_refused(run_sft):
    run_sft(epochs=1)
    with pytest.raises(RequestError, match="holds a run with other settings"):
        run_sft(epochs=2)


def test_lengths_beyond_the_context_are_refused(run_sft):
    with pytest.raises(RequestError, match=r"sft.max_length is 300, beyond the model's context of 256"):
        run_sft(max_length=300)


def test_pickled_weights_are_refused(run_sft, tiny_checkpoint, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"pytorch_model.bin.*convert it to safetensors"):
        load_policy(folder)


def test_a_crash_leaves_nothing_that_looks_finished(run_sft, monkeypatch, tmp_path):
    monkeypatch.setattr(sft, "save_trained", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        run_sft(epochs=1)
    run = RunDirectory(tmp_path / "run")
    assert not run.finished
    assert not run.checkpoint.exists()
