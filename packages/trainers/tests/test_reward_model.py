"""The reward model stage on a tiny model: what it learns, how it renders, what it records."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from posttrain.core.clients import Completion
from posttrain.core.errors import RequestError
from posttrain.core.runs import RunDirectory, StageIdentity
from posttrain.data.chat import render_completion
from posttrain.data.sources import Source
from posttrain.trainers import reward_model
from posttrain.trainers.comparisons import Comparison, comparisons, from_pair
from posttrain.trainers.models import align_special_tokens, load_policy, load_sequence_classifier
from posttrain.trainers.quiet import quiet
from posttrain.trainers.reward_accuracy import pairwise_accuracy, reward_offset, score
from posttrain.trainers.rollouts import VersionedPolicy
from posttrain.trainers.stage import StageInputs, run_stage

pytestmark = pytest.mark.long

QUICK = {"max_length": 128, "batch_size": 8, "epochs": 4, "log_every": 1, "lr": 5e-3, "held_out": 0.25}


@pytest.fixture
def run_rm(tmp_path, tiny_checkpoint, pairs, jsonl):
    def run(rows=pairs, policy=None, **settings):
        identity = StageIdentity("rm", reward_model.METHOD.version, {"settings": settings}, 0)
        run = RunDirectory.of(tmp_path / "runs", "tiny", identity)
        inputs = StageInputs(
            run, 0, tiny_checkpoint, source=Source(path=jsonl("pairs.jsonl", rows)), policy=policy, threads=1
        )
        chosen = reward_model.Settings(**{**QUICK, **settings})
        return run, run_stage("rm", chosen, inputs, identity)["summary"]

    return run


@pytest.fixture
def classifier(tiny_checkpoint, tiny_tokenizer):
    model, _ = load_sequence_classifier(tiny_checkpoint, seed=0)
    align_special_tokens(model, tiny_tokenizer)
    return model.eval()


def test_accuracy_on_separable_pairs_goes_to_one(run_rm):
    run, summary = run_rm()
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    # −log σ(0) = log 2 before anything is learnt
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=0.2)
    assert summary["accuracy"]["all"] == {"accuracy": 1.0, "standard_error": pytest.approx(0), "n": 20}
    assert summary["accuracy"]["even"]["n"] + summary["accuracy"]["odd"]["n"] == 20
    assert rows[-1]["held_out_accuracy"] == 1.0
    assert {"margin", "reward_mean", "reward_std", "tokens", "tokens_per_second", "seconds"} <= rows[0].keys()


def test_rankings_are_learnt_too(run_rm):
    words = ["excellent", "fine", "poor"]
    rankings = [
        {
            "id": str(n),
            "prompt": [{"role": "user", "content": f"how is {n}?"}],
            "completions": [f"{word} {n}" for word in words],
            "kind": "made",
        }
        for n in range(60)
    ]
    _, summary = run_rm(rows=rankings, loss="kwise")
    assert summary["accuracy"]["all"]["n"] == 3 * summary["held_out_examples"]
    assert summary["accuracy"]["all"]["accuracy"] == 1.0


def test_the_result_lies_where_the_runs_folder_keeps_them(run_rm, tmp_path):
    run, summary = run_rm(epochs=1)
    result = json.loads((tmp_path / "runs" / "rm" / f"{run.path.name}.json").read_text())
    assert result["accuracy"] == summary["accuracy"]
    assert result["reward_offset"] == summary["reward_offset"]


def test_the_offset_centres_the_held_out_answers(run_rm, tiny_tokenizer, pairs):
    run, summary = run_rm()
    model = AutoModelForSequenceClassification.from_pretrained(run.checkpoint)
    assert model.config.reward_offset == summary["reward_offset"]
    assert model.config.pad_token_id == tiny_tokenizer.pad_token_id
    assert summary["reward_offset_samples"]["origin"] == "answers of the held-out comparisons"
    rows = comparisons(tiny_tokenizer, [from_pair(pair) for pair in pairs], 128).rows
    every = score(model, tiny_tokenizer, [sequence for row in rows for sequence in row.sequences])
    margin = abs(every - every.mean()).mean()
    assert abs(every.mean() - summary["reward_offset"]) < 0.2 * margin


class Policy(VersionedPolicy):
    """Answers `yes`, finished or cut off in turn."""

    def __init__(self):
        pass

    def complete(self, prompts, step, *, n, max_tokens, temperature, seed):
        return [
            [Completion([1], [0.0], "yes", "stop" if index % 2 == 0 else "length")] for index in range(len(prompts))
        ]


def test_one_held_out_answer_is_too_few_for_an_offset(classifier, tiny_tokenizer, pairs):
    rows = comparisons(tiny_tokenizer, [from_pair(pairs[0])], 128).rows
    with pytest.raises(RequestError, match=r"two held-out answers or more, there are 1; give more pairs"):
        reward_offset(classifier, tiny_tokenizer, rows, Policy(), 1, 8, seed=0)


def test_the_offset_is_the_mean_score_of_the_policy_s_samples(classifier, tiny_tokenizer, pairs):
    rows = comparisons(tiny_tokenizer, [from_pair(pair) for pair in pairs], 128).rows
    offset, samples = reward_offset(classifier, tiny_tokenizer, rows, Policy(), 5, 8, seed=0)
    sequences = [render_completion(tiny_tokenizer, row.prompt, "yes", i % 2 == 0) for i, row in enumerate(rows[:5])]
    alone = [classifier(torch.tensor([sequence])).logits.item() for sequence in sequences]
    assert offset == pytest.approx(np.mean(alone), abs=1e-5)
    assert samples["n"] == 5
    assert samples["origin"] == "samples from the policy service"


def test_batched_scores_equal_single_ones_in_any_order(classifier, tiny_tokenizer):
    sequences = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [1, 2]]
    alone = [classifier(torch.tensor([sequence])).logits.item() for sequence in sequences]
    assert score(classifier, tiny_tokenizer, sequences) == pytest.approx(alone, abs=1e-5)


def test_training_sees_what_the_service_scores(tiny_tokenizer, pairs):
    (row,) = comparisons(tiny_tokenizer, [from_pair(pairs[0])], 128).rows
    for answer, side in zip(row.sequences, ("chosen", "rejected"), strict=True):
        text = pairs[0][side][0]["content"]
        assert answer == render_completion(tiny_tokenizer, pairs[0]["prompt"], text, finished=True)
        assert answer[-1] == tiny_tokenizer.eos_token_id


def test_an_answer_that_was_cut_short_gets_no_end_token(tiny_tokenizer, pairs):
    cut = {**pairs[0], "chosen": [{**pairs[0]["chosen"][0], "interrupted": True}]}
    (whole,), (row,) = (comparisons(tiny_tokenizer, [from_pair(pair)], 128).rows for pair in (pairs[0], cut))
    assert row.answers == [whole.answers[0][:-1], whole.answers[1]]
    assert whole.answers[0][-1] == tiny_tokenizer.eos_token_id


def test_on_pairs_the_loss_equals_trl_s(tmp_path, tiny_checkpoint, classifier, tiny_tokenizer, pairs):
    rows = comparisons(tiny_tokenizer, [from_pair(pair) for pair in pairs[:8]], 128).rows
    inputs = StageInputs(RunDirectory(tmp_path / "run"), seed=0, start=tiny_checkpoint)
    with quiet():
        trainer = reward_model.build_trainer(reward_model.Settings(), inputs, classifier, tiny_tokenizer, rows)
    ours = trainer.compute_loss(classifier, trainer.data_collator([trainer.train_dataset[n] for n in range(8)]))
    as_pairs = [{"chosen_ids": row.sequences[0], "rejected_ids": row.sequences[1]} for row in rows]
    batch = DataCollatorForPreference(tiny_tokenizer.pad_token_id)(as_pairs)
    assert ours.item() == pytest.approx(RewardTrainer.compute_loss(trainer, classifier, batch).item(), rel=1e-5)


def test_the_update_does_not_depend_on_the_micro_batch_even_in_a_short_last_batch(
    tmp_path, tiny_checkpoint, tiny_tokenizer, pairs
):
    def trained(name, **options):
        model, _ = load_sequence_classifier(tiny_checkpoint, 0)
        align_special_tokens(model, tiny_tokenizer)
        rows = comparisons(tiny_tokenizer, [from_pair(pair) for pair in pairs[:13]], 128).rows
        inputs = StageInputs(RunDirectory(tmp_path / name), seed=0, start=tiny_checkpoint)
        settings = reward_model.Settings(batch_size=8, epochs=1, bucket=1, lr=1e-3, **options)
        with quiet():
            trainer = reward_model.build_trainer(settings, inputs, model, tiny_tokenizer, rows)
            trainer.train()
        return {name: p.detach() for name, p in model.named_parameters()}

    whole, split = trained("whole"), trained("split", micro_batch_size=2)
    assert all(torch.allclose(whole[name], split[name], atol=2e-5) for name in whole)


def test_the_new_head_depends_on_the_seed_alone(tiny_checkpoint):
    def head(seed):
        torch.manual_seed(torch.randint(99, ()).item())
        return load_sequence_classifier(tiny_checkpoint, seed)[0].score.weight

    assert torch.equal(head(0), head(0))
    assert not torch.equal(head(0), head(1))
    assert head(0).std().item() == pytest.approx(1 / math.sqrt(33), rel=0.5)


def test_the_body_of_the_classifier_is_the_policy_s(tiny_checkpoint):
    policy, (classifier, new_head) = load_policy(tiny_checkpoint), load_sequence_classifier(tiny_checkpoint, 0)
    assert new_head
    for name, parameter in classifier.base_model.named_parameters():
        assert torch.equal(parameter, policy.base_model.get_parameter(name)), name


def test_a_reward_model_keeps_its_head(run_rm):
    run, _ = run_rm(epochs=1)
    model, new_head = load_sequence_classifier(run.checkpoint, seed=7)
    trained = AutoModelForSequenceClassification.from_pretrained(run.checkpoint)
    assert not new_head
    assert torch.equal(model.score.weight, trained.score.weight)


def test_pairwise_accuracy_by_hand(monkeypatch):
    # margins 1, −1 and 0 count 1, 0 and ½; the two pairs of prompt "a" are one cluster
    rows = [
        Comparison([{"role": "user", "content": prompt}], [1], [[1], [2]], kind)
        for prompt, kind in (("a", "x"), ("a", "x"), ("b", "y"))
    ]
    monkeypatch.setattr("posttrain.trainers.reward_accuracy.score", lambda *_: np.array([1.0, 0.0, 0.0, 1.0, 2.0, 2.0]))
    result = pairwise_accuracy(None, None, rows)
    assert (result["all"].accuracy, result["all"].n) == (0.5, 3)
    assert (result["x"].accuracy, result["x"].standard_error, result["x"].n) == (0.5, None, 2)
    assert (result["y"].accuracy, result["y"].n) == (0.5, 1)


def test_pairs_that_do_not_fit_are_dropped_and_counted(tiny_tokenizer, pairs):
    rows = [from_pair(pair) for pair in pairs[:4]]
    rows[1] = {**rows[1], "completions": ["a" * 200, "b"]}
    data = comparisons(tiny_tokenizer, rows, 128)
    assert (len(data.rows), data.dropped) == (3, 1)
    with pytest.raises(RequestError, match="none of 1 comparisons fits in 128 tokens"):
        comparisons(tiny_tokenizer, rows[1:2], 128)


def test_a_stage_without_data_says_what_it_needs(tmp_path, tiny_checkpoint):
    inputs = StageInputs(RunDirectory(tmp_path / "run"), seed=0, start=tiny_checkpoint)
    with pytest.raises(RequestError, match="rm needs training data"):
        reward_model.train(reward_model.Settings(), inputs)
