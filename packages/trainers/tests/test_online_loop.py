"""The online loop with services in this process: versions, seeds, rewards, truncation, refusals, resume."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import (
    FakePolicy,
    FakeReward,
    Interrupted,
    StubbornPolicy,
    interrupt,
    rows_without_times,
    tiny_inputs,
    tiny_model,
    tiny_settings,
)

from posttrain.core.clients import Completion
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.seeds import derive_seed
from posttrain.trainers import learners, ppo
from posttrain.trainers.batch import Batch
from posttrain.trainers.models import save_checkpoint
from posttrain.trainers.online import OnlineLoop, train_online
from posttrain.trainers.online_method import Group, OnlineMethod
from posttrain.trainers.online_metrics import sampling_metrics
from posttrain.trainers.phases import Phases
from posttrain.trainers.rewards import terminal_rewards, weighted_sum
from posttrain.trainers.rollouts import RenderedPrompt, held_version, take_prompts

pytestmark = pytest.mark.long


def weights(run):
    return safetensors.torch.load_file(run.checkpoint / "model.safetensors")


def same_bits(one, other):
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    runs = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        inputs = tiny_inputs(tmp_path, name, seed=seed)
        ppo.train(tiny_settings(), inputs)
        runs[name] = inputs.run
    assert same_bits(runs["a"], runs["b"])
    assert rows_without_times(runs["a"]) == rows_without_times(runs["b"])
    assert not same_bits(runs["a"], runs["c"])


def test_start_is_pushed_then_each_step_asks_for_its_own_version_and_pushes_the_next(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=3), inputs)
    assert inputs.policy.asked == [1, 2, 3]
    assert inputs.policy.pushed == [1, 2, 3, 4]


def test_the_service_ends_with_the_weights_of_the_checkpoint(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=2), inputs)
    served = inputs.policy.model.state_dict()
    assert all(torch.equal(served[name], tensor) for name, tensor in weights(inputs.run).items())


def test_what_a_kill_leaves_of_a_push_lies_in_the_runs_state_and_goes_with_the_next_save(tmp_path):
    inputs = tiny_inputs(tmp_path)
    (left := inputs.run.state / "posttrain-weights-of-a-killed-run").mkdir(parents=True)
    places, push = set(), inputs.policy.push

    def noting(version, weights):
        places.add(weights.parent.parent)
        return push(version, weights)

    inputs.policy.push = noting
    ppo.train(tiny_settings(steps=3, save_every=2), inputs)
    assert places == {inputs.run.state}
    assert not left.exists()
    assert [path.name for path in inputs.run.state.iterdir()] == ["step-000002"]


def test_a_disk_without_room_for_a_push_is_told_in_a_line(tmp_path, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(learners, "write_weights", full)
    inputs = tiny_inputs(tmp_path)
    with pytest.raises(WorkError, match=f"no space left to write {inputs.run.state}"):
        ppo.train(tiny_settings(), inputs)


class ForgetfulPolicy(FakePolicy):
    """Dies once, on its third request, and comes back with its first weights."""

    def complete(self, prompts, **arguments):
        if len(self.asked) == 2:
            self.__init__(self.checkpoint)
            self.asked = [None, None, None]
        return super().complete(prompts, **arguments)

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        super().__init__(checkpoint)


def test_a_service_that_lost_its_weights_gets_them_again_and_nothing_changes(tmp_path):
    calm = tiny_inputs(tmp_path, "calm")
    ppo.train(tiny_settings(), calm)
    shaken = tiny_inputs(tmp_path, "shaken", policy=ForgetfulPolicy(calm.start))
    summary = ppo.train(tiny_settings(), shaken)
    assert summary["repeated_pushes"] == 1
    assert same_bits(calm.run, shaken.run)


def test_a_service_that_holds_later_versions_is_pushed_beyond_them(tmp_path):
    fresh = tiny_inputs(tmp_path, "fresh")
    ppo.train(tiny_settings(), fresh)
    used = tiny_inputs(tmp_path, "used", policy=fresh.policy)
    ppo.train(tiny_settings(), used)
    assert used.policy.pushed == sorted(set(used.policy.pushed))
    assert same_bits(fresh.run, used.run)


def test_a_service_that_started_from_another_checkpoint_is_given_the_right_weights(tmp_path):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    right = tiny_inputs(tmp_path, "right")
    other = tiny_inputs(tmp_path, "other-start", policy=FakePolicy(tmp_path / "other"))
    for inputs in (right, other):
        ppo.train(tiny_settings(), inputs)
    assert same_bits(right.run, other.run)


def test_a_service_with_other_weights_stops_the_run(tmp_path):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    inputs = tiny_inputs(tmp_path, policy=StubbornPolicy(tmp_path / "other"))
    with pytest.raises(WorkError, match="serves other weights"):
        ppo.train(tiny_settings(), inputs)


def test_a_service_that_always_forgets_is_an_error(tmp_path):
    inputs = tiny_inputs(tmp_path)
    inputs.policy.push = lambda version, weights: {}
    with pytest.raises(WorkError, match="lost the weights of step 0"):
        ppo.train(tiny_settings(), inputs)


def test_gold_is_asked_and_logged_though_nothing_learns_from_it(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=1, truncation="penalty"), inputs)
    (asked, items), *_ = inputs.reward.asked
    assert asked == ["rm", "verifier"]
    assert set(items[0]) == {"prompt", "completion", "finish_reason", "reference"}
    (row,) = rows_without_times(inputs.run)
    assert row["gold/mean"] == row["score/verifier/mean"]


def test_a_source_that_is_both_reward_and_gold_is_asked_once(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=1, rewards={"verifier": 1.0}), inputs)
    assert inputs.reward.asked[0][0] == ["verifier"]


def test_every_number_that_a_reader_needs_is_in_every_row(tmp_path):
    inputs = tiny_inputs(tmp_path)
    summary = ppo.train(tiny_settings(validate_every=2, validation_prompts=3), inputs)
    from posttrain.core.metrics import MetricsLog

    rows = MetricsLog(inputs.run.metrics_path).rows()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    names = {
        *("loss/policy", "loss/value", "reward/mean", "reward/std", "score/rm/mean", "score/rm/std", "gold/mean"),
        *("gold/std", "kl", "kl/k3", "kl_coef", "clip_fraction", "entropy", "explained_variance", "lr"),
        *("completion/length", "completion/truncated", "engine/mismatch_mean", "engine/mismatch_max"),
        *("tokens_per_second/generation", "tokens_per_second/update", "grad_norm/policy", "grad_norm/values"),
        *("seconds/generation", "seconds/reward", "seconds/forward", "seconds/update", "seconds/push", "seconds"),
    }
    for row in rows[:4]:
        assert names <= row.keys(), names - row.keys()
    assert [row["step"] for row in rows if "seconds/save" in row] == [2]  # the step after the save
    assert [row["step"] for row in rows if "seconds/validation" in row] == [0, 2, 4]
    assert rows[4]["seconds"] == rows[4]["seconds/validation"] > 0
    assert summary["totals"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert summary["last_step"]["reward/mean"] == rows[3]["reward/mean"]
    assert [("validation/gold" in row, "validation/rm" in row) for row in rows] == [
        (True, True),
        (False, False),
        (True, True),
        (False, False),
        (True, True),
    ]


def test_validation_changes_nothing_of_the_run(tmp_path):
    plain, watched = tiny_inputs(tmp_path, "plain"), tiny_inputs(tmp_path, "watched")
    ppo.train(tiny_settings(), plain)
    ppo.train(tiny_settings(validate_every=1, validation_prompts=3), watched)
    assert same_bits(plain.run, watched.run)


@pytest.mark.parametrize(
    ("rule", "expected"), [("lowest", [0.5, -1.0, -1.0]), ("penalty", [0.5, -3.0, -1.0]), ("mask", [0.5, 0.0, -1.0])]
)
def test_a_truncated_completion_gets_what_the_rule_says_instead_of_its_score(rule, expected):
    rewards, finished = torch.tensor([0.5, 9.0, -1.0]), torch.tensor([True, False, True])
    assert terminal_rewards(rewards, finished, rule, -3.0).tolist() == expected


def test_when_nothing_finished_the_lowest_reward_is_the_penalty():
    assert terminal_rewards(torch.ones(2), torch.zeros(2, dtype=torch.bool), "lowest", -3.0).tolist() == [-3.0, -3.0]


def test_the_lowest_reward_of_a_step_is_that_of_all_its_rounds():
    rewards, finished = torch.tensor([9.0, 1.0]), torch.tensor([False, True])
    assert terminal_rewards(rewards, finished, "lowest", -3.0, lowest=0.0).tolist() == [0.0, 1.0]
    assert terminal_rewards(rewards, finished, "lowest", -3.0, lowest=2.0).tolist() == [1.0, 1.0]
    assert terminal_rewards(rewards, torch.zeros(2).bool(), "lowest", -3.0, lowest=0.5).tolist() == [0.5, 0.5]
    assert terminal_rewards(rewards, finished, "penalty", -3.0, lowest=0.0).tolist() == [-3.0, 1.0]


def test_under_the_rule_mask_truncated_completions_have_no_gradient(tmp_path):
    settings = tiny_settings(truncation="mask", prompts_per_step=8)
    loop = OnlineLoop(ppo.PPO(settings), settings, tiny_inputs(tmp_path))
    groups, _ = loop.sample(Phases())
    batch = loop.look_back(groups)
    loop.credit(batch)
    assert batch.finished.any()
    assert not batch.finished.all()
    minibatch = loop.look_now(batch, int(batch.mask.sum()), len(batch))
    minibatch.logprobs.retain_grad()
    loop.method.loss(minibatch)[0].backward()
    assert (minibatch.logprobs.grad[~batch.finished] == 0).all()
    left = batch.credit["advantages"][batch.mask]
    # Whitened among themselves: a truncated row's missing reward moves nobody else's advantage.
    assert float(left.mean()) == pytest.approx(0, abs=1e-5)
    assert float(left.std(unbiased=False)) == pytest.approx(1, abs=1e-3)


def test_rewards_are_the_weighted_sum_of_their_sources():
    scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0]), "gold": torch.tensor([5.0, 5.0])}
    assert weighted_sum(scores, {"a": 2.0, "b": 0.1}).tolist() == pytest.approx([3.0, 6.0])


def test_every_prompt_comes_once_a_pass_and_each_pass_has_its_own_order():
    prompts = [RenderedPrompt({"id": str(i), "prompt": [], "reference": None, "kind": ""}, [i]) for i in range(7)]
    taken = [prompt.ids[0] for prompt in take_prompts(prompts, 0, 21, seed=1)]
    passes = [taken[:7], taken[7:14], taken[14:]]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert [p.ids[0] for p in take_prompts(prompts, 5, 6, seed=1)] == taken[5:11]


@pytest.mark.parametrize(
    ("ids", "version"), [(["policy@17"], 17), (["policy@3", "adapter"], 3), (["Qwen/Qwen2.5-0.5B"], 0)]
)
def test_the_version_that_a_service_holds_is_in_its_list_of_models(ids, version):
    assert held_version({"data": [{"id": name} for name in ids]}) == version


def test_a_prompt_longer_than_the_context_is_refused_and_can_be_left_out(tmp_path):
    with pytest.raises(RequestError, match=r"exceeds the context of 128; set max_prompt_tokens = 28"):
        ppo.train(tiny_settings(max_new_tokens=100), tiny_inputs(tmp_path))
    loop_settings = tiny_settings(max_new_tokens=100, max_prompt_tokens=28)
    loop = OnlineLoop(ppo.PPO(loop_settings), loop_settings, tiny_inputs(tmp_path))
    assert 0 < len(loop.prompts) < 10
    with pytest.raises(RequestError, match="none of 10 prompts"):
        ppo.train(tiny_settings(max_prompt_tokens=2), tiny_inputs(tmp_path))


@pytest.mark.parametrize(
    ("missing", "message"),
    [("policy", "no policy service"), ("reward", "no reward"), ("source", "prompts"), ("reference", "reference")],
)
def test_what_is_missing_is_named(tmp_path, missing, message):
    with pytest.raises(RequestError, match=message):
        ppo.train(tiny_settings(), dataclasses.replace(tiny_inputs(tmp_path), **{missing: None}))


class Centred(OnlineMethod):
    """A method of twenty lines from outside the package: REINFORCE with the group's mean as baseline."""

    def accept(self, group):
        return float(group.rewards.std(correction=0)) > 0

    def credit(self, batch):
        means = torch.stack([batch.rewards[batch.groups == g].mean() for g in batch.groups])
        return {"advantages": (batch.rewards - means)[:, None] * batch.mask}, {"groups": float(batch.groups.max()) + 1}

    def loss(self, minibatch):
        loss = -(minibatch.logprobs * minibatch.rows.credit["advantages"]).sum() / minibatch.tokens
        return loss, {"loss/policy": loss}


def test_a_method_from_outside_runs_on_the_loop_with_groups_and_without_a_reference(tmp_path):
    inputs = dataclasses.replace(tiny_inputs(tmp_path), reference=None)
    settings = tiny_settings(samples_per_prompt=3, truncation="penalty")
    train_online(Centred(), settings, inputs)
    rows = rows_without_times(inputs.run)
    assert all("kl" not in row and "grad_norm/values" not in row for row in rows)
    assert any(row["grad_norm/policy"] > 0 for row in rows)


def test_refused_groups_are_replaced_by_further_prompts(tmp_path):
    class Picky(Centred):
        def accept(self, group):
            return int(group.prompt.prompt["reference"]["answer"]) % 4 == 0

    counts = {}
    for rounds in (0, 6):
        settings = tiny_settings(samples_per_prompt=2, resample_rounds=rounds)
        loop = OnlineLoop(Picky(), settings, tiny_inputs(tmp_path, f"rounds{rounds}"))
        groups, metrics = loop.sample(Phases())
        counts[rounds] = len(groups)
        assert loop.position.cursor == len(groups) + metrics["groups_refused"]
    assert counts[0] < 4
    assert counts[6] == 4


def test_a_step_whose_groups_are_all_refused_goes_on_without_an_update(tmp_path):
    class Never(Centred):
        def accept(self, group):
            return False

    inputs = tiny_inputs(tmp_path)
    train_online(Never(), tiny_settings(steps=2), inputs)
    assert [row["groups_refused"] for row in rows_without_times(inputs.run)] == [4, 4]
    start = safetensors.torch.load_file(inputs.start / "model.safetensors")
    assert all(torch.equal(start[name], tensor) for name, tensor in weights(inputs.run).items())


@pytest.mark.parametrize("controller", ["fixed", "adaptive"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tmp_path, controller):
    """Policy, critic, both optimiser states, KL coefficient, prompts and metrics."""
    settings = tiny_settings(steps=6, save_every=2, kl_controller=controller, kl_target=0.5)
    whole, broken = tiny_inputs(tmp_path, "whole"), tiny_inputs(tmp_path, "broken")
    ppo.train(settings, whole)
    interrupt(broken.policy, version=6)
    with pytest.raises(Interrupted):
        ppo.train(settings, broken)
    assert len(rows_without_times(broken.run)) == 5  # one step beyond the newest save
    again = tiny_inputs(tmp_path, "broken")
    ppo.train(settings, again)
    assert again.policy.pushed[0] == again.policy.asked[0] == 4  # the step that the newest state is of
    assert same_bits(whole.run, again.run)
    assert rows_without_times(whole.run) == rows_without_times(again.run)


def test_only_the_newest_state_is_kept(tmp_path):
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(steps=4, save_every=1), inputs)
    assert [folder.name for folder in inputs.run.state.iterdir()] == ["step-000003"]


def test_a_run_killed_with_sigkill_resumes_to_the_same_bits(tmp_path):
    whole = tiny_inputs(tmp_path, "whole")
    torch.set_num_threads(1)
    ppo.train(tiny_settings(steps=14, save_every=1), whole)
    command = [sys.executable, str(Path(__file__).parent / "online_fakes.py"), str(tmp_path), "killed", "14"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    state = tmp_path / "killed" / "state"
    deadline = time.monotonic() + 60
    while not (state.is_dir() and list(state.glob("step-*"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    assert list(state.glob("step-*"))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = tiny_inputs(tmp_path, "killed")
    assert not killed.run.checkpoint.exists()
    ppo.train(tiny_settings(steps=14, save_every=1), killed)
    assert same_bits(whole.run, killed.run)
    assert rows_without_times(whole.run) == rows_without_times(killed.run)


def test_bf16_keeps_weights_in_fp32_after_a_stage_in_fp32(tmp_path):
    ppo.train(tiny_settings(steps=1), tiny_inputs(tmp_path, "fp32"))
    inputs = tiny_inputs(tmp_path, "bf16")
    ppo.train(tiny_settings(steps=2, precision="bf16", truncation="penalty"), inputs)
    assert {tensor.dtype for tensor in weights(inputs.run).values()} == {torch.float32}
    first = rows_without_times(inputs.run)[0]
    assert first["kl"] == first["kl/k3"] == 0  # the reference reads in the same precision
    mismatch = first["engine/mismatch_mean"]
    assert 1e-5 < mismatch < 0.1  # the fake engine samples in fp32
    ppo.train(tiny_settings(steps=1), tiny_inputs(tmp_path, "fp32 again"))


def test_divergence_stops_the_run_before_it_is_exported(tmp_path):
    inputs = tiny_inputs(tmp_path)
    with pytest.raises(WorkError, match=r"training diverged: grad_norm/.* lower lr"):
        ppo.train(tiny_settings(steps=8, lr=1e6, critic_lr=1e6), inputs)
    assert not inputs.run.checkpoint.exists()


def test_old_logprobs_are_of_the_weights_that_sampled(tmp_path):
    """Stale weights would show here: engine and trainer agree at every step."""
    inputs = tiny_inputs(tmp_path)
    ppo.train(tiny_settings(), inputs)
    assert max(row["engine/mismatch_max"] for row in rows_without_times(inputs.run)) < 1e-4


class OneAfterAnother(FakePolicy):
    """Answers a request when the completions of all those before it have been scored."""

    def __init__(self, checkpoint, reward):
        super().__init__(checkpoint)
        self.reward, self.lock = reward, threading.Lock()

    def complete(self, prompts, **arguments):
        with self.lock:
            before = len(self.asked)
            answers = super().complete(prompts, **arguments)
        deadline = time.monotonic() + 30
        while len(self.reward.asked) < before:
            assert time.monotonic() < deadline, "nothing is scored while others are generated"
            time.sleep(0.001)
        return answers


def test_completions_are_scored_while_others_are_generated_and_nothing_depends_on_the_order(tmp_path):
    settings = tiny_settings(overlap_scoring=True, samples_per_prompt=2, steps=2)
    calm = tiny_inputs(tmp_path, "calm")
    ppo.train(settings, calm)
    reward = FakeReward()
    ordered = tiny_inputs(tmp_path, "ordered", policy=OneAfterAnother(calm.start, reward), reward=reward)
    ppo.train(settings, ordered)
    assert [len(items) for _, items in reward.asked] == [2] * 8
    assert rows_without_times(calm.run) == rows_without_times(ordered.run)
    assert same_bits(calm.run, ordered.run)


class ForgettingOnce(FakePolicy):
    """Is back at its first weights when the second rollout's requests come."""

    def complete(self, prompts, **arguments):
        if len(self.asked) == 4:
            self.version = 0
        return super().complete(prompts, **arguments)


def test_weights_that_all_requests_miss_are_pushed_once(tmp_path):
    inputs = tiny_inputs(tmp_path)
    inputs = dataclasses.replace(inputs, policy=ForgettingOnce(inputs.start))
    summary = ppo.train(tiny_settings(overlap_scoring=True), inputs)
    assert summary["repeated_pushes"] == 1


def test_a_request_that_fails_ends_the_rollout(tmp_path):
    class Failing(FakePolicy):
        def complete(self, prompts, **arguments):
            raise WorkError("out of memory")

    inputs = tiny_inputs(tmp_path)
    with pytest.raises(WorkError, match="out of memory"):
        ppo.train(tiny_settings(overlap_scoring=True), dataclasses.replace(inputs, policy=Failing(inputs.start)))


class LastFails(FakePolicy):
    """Fails at the last prompt of a rollout at once, and answers the others when `released` is set."""

    def __init__(self, checkpoint):
        super().__init__(checkpoint)
        self.others, self.released = threading.Semaphore(0), threading.Event()

    def complete(self, prompts, *, seed, **arguments):
        if seed == self.last:
            for _ in range(3):
                assert self.others.acquire(timeout=30)
            raise WorkError("out of memory")
        self.others.release()
        assert self.released.wait(30)
        return super().complete(prompts, seed=seed, **arguments)


def test_a_failure_is_known_before_the_other_requests_end_and_nothing_is_scored_after_it(tmp_path):
    settings = tiny_settings(overlap_scoring=True)
    inputs = tiny_inputs(tmp_path)
    policy = LastFails(inputs.start)
    policy.last = derive_seed(7, "prompt", 3)
    loop = OnlineLoop(ppo.PPO(settings), settings, dataclasses.replace(inputs, policy=policy))
    with pytest.raises(WorkError, match="out of memory"):
        loop.rollouts.take(loop.prompts[:4], 0, 7, Phases())
    under_way = [thread for thread in threading.enumerate() if thread.name.startswith("rollout")]
    assert len(under_way) >= 3
    policy.released.set()
    for thread in under_way:
        thread.join(30)
    assert not inputs.reward.asked


class RoughPolicy(FakePolicy):
    """Says log-probabilities that are off by half a hundredth, as an engine in bf16 does."""

    def complete(self, prompts, **arguments):
        return [
            [dataclasses.replace(c, logprobs=[x + 0.005 for x in c.logprobs]) for c in choices]
            for choices in super().complete(prompts, **arguments)
        ]


def test_an_exact_engine_spares_the_forward_pass_of_old_logprobs_after_the_first_step(tmp_path):
    exact = tiny_inputs(tmp_path, "exact")
    rough = tiny_inputs(tmp_path, "rough", policy=RoughPolicy(exact.start))
    for inputs, expected in ((exact, [1, 0, 0, 0]), (rough, [1, 1, 1, 1])):
        ppo.train(tiny_settings(), inputs)
        assert [row["old_logprobs/recomputed"] for row in rows_without_times(inputs.run)] == expected
    row, *_ = rows_without_times(rough.run)
    assert row["engine/mismatch_mean"] == pytest.approx(0.005, abs=1e-4)


def test_sampled_and_recomputed_old_logprobs_learn_the_same_from_an_exact_engine(tmp_path):
    """Losses and gradients: Adam would blow a gradient of rounding noise up to a whole learning rate."""
    rows = {}
    for wish in ("sampled", "recomputed"):
        inputs = tiny_inputs(tmp_path, wish)
        changes = {"steps": 1, "epochs": 1, "minibatches": 1, "truncation": "penalty", "truncation_reward": -1.0}
        ppo.train(tiny_settings(old_logprobs=wish, **changes), inputs)
        (rows[wish],) = rows_without_times(inputs.run)
    assert [row.pop("old_logprobs/recomputed") for row in rows.values()] == [0, 1]
    weights_of = {name: [key for key in row if key.startswith("importance/")] for name, row in rows.items()}
    assert (len(weights_of["sampled"]), len(weights_of["recomputed"])) == (0, 3)
    for key in weights_of["recomputed"]:
        del rows["recomputed"][key]
    assert rows["sampled"]["grad_norm/policy"] > 1e-3
    assert rows["sampled"] == pytest.approx(rows["recomputed"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("wish", ["sampled", "recomputed"])
def test_nothing_is_learnt_from_a_rollout_of_other_weights(tmp_path, wish):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    settings = tiny_settings(old_logprobs=wish)
    inputs = tiny_inputs(tmp_path, policy=StubbornPolicy(tmp_path / "other"))
    loop = OnlineLoop(ppo.PPO(settings), settings, inputs)
    before = [parameter.clone() for parameter in loop.learners.policy.parameters()]
    with pytest.raises(WorkError, match="serves other weights"):
        loop.train()
    after = loop.learners.policy.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class Unending(FakePolicy):
    """Never says the end, so every completion is cut at the length limit."""

    def complete(self, prompts, **arguments):
        return [
            [dataclasses.replace(c, finish_reason="length") for c in choices]
            for choices in super().complete(prompts, **arguments)
        ]


class UnendingStubborn(Unending, StubbornPolicy):
    pass


def test_other_weights_stop_the_run_where_all_completions_are_truncated_and_masked(tmp_path):
    save_checkpoint(*tiny_model(seed=1), tmp_path / "other")
    inputs = tiny_inputs(tmp_path, policy=UnendingStubborn(tmp_path / "other"))
    with pytest.raises(WorkError, match="serves other weights"):
        ppo.train(tiny_settings(steps=1, truncation="mask"), inputs)


def test_the_engine_is_compared_on_the_tokens_that_the_rule_mask_takes_out_of_the_loss(tmp_path):
    settings = tiny_settings(truncation="mask")
    loop = OnlineLoop(ppo.PPO(settings), settings, tiny_inputs(tmp_path))
    groups, _ = loop.sample(Phases())
    batch = loop.look_back(groups)
    sampled = batch.mask.clone()
    loop.credit(batch)
    assert not torch.equal(batch.mask, sampled)
    assert torch.equal(batch.sampled, sampled)
    _, differences = loop.accumulate(batch)
    assert sum(len(difference) for difference in differences) == sum(len(ids) for ids in batch.completion_ids)


def sampled_group(rewards, reasons):
    prompt = RenderedPrompt({"id": "0", "prompt": [], "reference": None, "kind": ""}, [1])
    completions = [Completion([2, 3], [-1.0, -1.0], "", reason) for reason in reasons]
    return Group(prompt, completions, torch.tensor(rewards), {"rm": torch.tensor([1.0, 2.0, 3.0])})


@pytest.mark.parametrize(
    ("rule", "reasons", "mean", "std"),
    [
        ("mask", ["stop", "length", "stop"], 3.0, 1.0),
        ("penalty", ["stop", "length", "stop"], 2.0, 8**0.5 / 3**0.5),
        ("mask", ["length"] * 3, 0.0, 0.0),
    ],
)
def test_the_mean_reward_is_of_the_completions_that_the_method_learns_from(rule, reasons, mean, std):
    rewards = [2.0, 0.0, 4.0] if "stop" in reasons else [0.0] * 3
    metrics = sampling_metrics([sampled_group(rewards, reasons)], None, rule)
    assert (metrics["reward/mean"], metrics["reward/std"]) == pytest.approx((mean, std))
    assert metrics["score/rm/mean"] == 2.0  # raw, of all


@pytest.mark.parametrize("finished", [[True, False], [False, False]])
def test_the_penalised_reward_leaves_out_rows_that_the_rule_mask_empties(finished):
    settings = ppo.Settings(kl_coef=0.5)
    finished = torch.tensor(finished)
    mask = finished[:, None].expand(2, 2).clone()
    batch = Batch(
        prompt_ids=[[1], [1]],
        completion_ids=[[2, 3], [2, 3]],
        mask=mask,
        sampled_logprobs=torch.full((2, 2), -1.0),
        rewards=torch.tensor([3.0, 0.0]),
        groups=torch.tensor([0, 1]),
        finished=finished,
        logprobs=torch.full((2, 2), -1.0),
        ref_logprobs=torch.full((2, 2), -2.0),
        outputs={"values": torch.zeros(2, 2)},
    )
    _, metrics = ppo.PPO(settings).credit(batch)
    # Two tokens of one nat each: 3 - 0.5 * 2.
    assert metrics["reward/penalised"] == pytest.approx(2.0 if finished.any() else 0.0)
