"""The online loop that PPO, GRPO and RLOO share: sample, score, credit, update, push; and again.

Takes a method (an object of mathematics, see `OnlineMethod`), its settings and a stage's inputs; policies and rewards
are services, reached over HTTP only. Gives a checkpoint, metrics.jsonl and a summary. It knows nothing of any method.
The same inputs give the same bits, and a killed run that is started again ends as an uninterrupted one would have;
both but for a reward model's last digits under `overlap_scoring`.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.core.metrics import MetricsLog, Progress
from posttrain.core.seeds import derive_seed
from posttrain.core.termination import Terminated, ending_in_order
from posttrain.data.sources import Source
from posttrain.trainers.adapters import save_trained
from posttrain.trainers.batch import Batch, Minibatch, collate, split_minibatches
from posttrain.trainers.forward import Rows, completion_logprobs, completion_outputs
from posttrain.trainers.importance import EXACT, correction, importance_metrics, scale_gradient
from posttrain.trainers.learners import Learners
from posttrain.trainers.models import context_length
from posttrain.trainers.online_costs import run_summary, step_cost
from posttrain.trainers.online_inputs import read_prompts, services
from posttrain.trainers.online_method import Group, OnlineMethod
from posttrain.trainers.online_metrics import check_mismatch, kl_metrics, mismatch_metrics, sampling_metrics
from posttrain.trainers.online_settings import OnlineSettings
from posttrain.trainers.phases import Phases
from posttrain.trainers.quiet import quiet
from posttrain.trainers.rewards import terminal_rewards, weighted_sum
from posttrain.trainers.rollouts import RenderedPrompt, VersionedPolicy, take_prompts
from posttrain.trainers.run_length import Spending
from posttrain.trainers.scored_rollouts import ScoredRollout, ScoredRollouts
from posttrain.trainers.stage import StageInputs
from posttrain.trainers.state import Position, load_state, save_state
from posttrain.trainers.validation import validate


def train_online(method: OnlineMethod, settings: OnlineSettings, inputs: StageInputs) -> dict[str, Any]:
    """Runs the loop, or what a killed run left of it, writes `inputs.run.checkpoint` and returns the summary."""
    with quiet():
        return OnlineLoop(method, settings, inputs).train()


class OnlineLoop:
    """One run of one method. `train` is the loop; the other methods are its lines."""

    def __init__(self, method: OnlineMethod, settings: OnlineSettings, inputs: StageInputs) -> None:
        self.method, self.settings, self.inputs = method, settings, inputs
        self.client, self.reward = services(inputs)
        self.told = False
        gold = [settings.gold_source] if settings.gold_source else []
        self.sources = list(dict.fromkeys([*settings.rewards, *gold]))
        self.learners = Learners(method, settings, inputs)
        self.prompts = self.read_prompts(inputs.source)
        self.held_out: list[RenderedPrompt] = []
        if settings.validate_every:
            self.held_out = self.read_prompts(inputs.validation)[: settings.validation_prompts]
        self.position = Position(method)
        self.learners.accelerator.register_for_checkpointing(self.position)
        load_state(self.learners.accelerator, inputs.run.state)
        # What a killed run leaves of a push there goes with the next save, or with the state.
        self.policy = VersionedPolicy(self.client, self.write_pushed, self.position.step, folder=inputs.run.state)
        self.rollouts = ScoredRollouts(self.policy, self.reward, self.sources, settings)
        self.log = MetricsLog(inputs.run.metrics_path, inputs.trackers, inputs.run.path.name)
        self.log.truncate(after_step=self.position.step - 1)
        self.steps = settings.share_of(settings.steps)
        self.spending = Spending(settings, self.log.rows())

    def write_pushed(self, file: Path, dtype: torch.dtype) -> None:
        """What is pushed: the adapter alone to a service that merges it into what this stage starts from, else all.

        Asked before each push: a service that came back may have started with something else."""
        if self.settings.adapter is None:
            self.learners.write_full(file, dtype)
        elif self.client.merges_into(self.inputs.start):
            self.learners.write_adapter(file)
        else:
            if not self.told:
                print(
                    f"the policy service was not started with {self.inputs.start}, or does not say so: each step sends "
                    "it full weights instead of the adapter",
                    file=sys.stderr,
                )
            self.told = True
            self.learners.write_full(file, dtype)

    def read_prompts(self, source: Source | None) -> list[RenderedPrompt]:
        """The prompts of a source, checked against the model's context."""
        return read_prompts(
            source,
            self.inputs.seed,
            self.learners.tokenizer,
            context=context_length(self.learners.plain_policy()),
            max_new_tokens=self.settings.max_new_tokens,
            max_prompt_tokens=self.settings.max_prompt_tokens,
        )

    def train(self) -> dict[str, Any]:
        """Runs the steps that are left, writes the checkpoint and returns the summary for provenance."""
        phases = Phases()
        with Progress(self.steps, "training") as progress, ending_in_order() as ending:
            while self.position.step < self.steps and not self.spending.exhausted:
                step = self.position.step
                metrics = self.validate(phases)
                groups, sampled = self.sample(phases)
                metrics |= sampled | {"optimizer_steps": 0.0}
                if groups:
                    with phases("forward"):
                        batch = self.look_back(groups)
                        if self.recomputes:  # else nothing was compared with the engine's that could be corrected
                            metrics |= importance_metrics(batch.importance, batch.mask, self.settings.importance_cap)
                        metrics |= kl_metrics(batch) | self.credit(batch)
                    with phases("update"):
                        metrics |= self.update(batch)
                self.position.step += 1
                with phases("push"):
                    self.policy.push(self.position.step)
                row = metrics | step_cost(phases, groups, metrics["tokens_generated"], self.settings.epochs)
                self.log.log(step, **row)
                self.spending.add(row)
                # What is saved begins after this row, so the seconds of a save stand in the next one.
                phases = Phases()
                asked = ending.asked
                due = asked or self.position.step % self.settings.save_every == 0
                if due and self.position.step < self.steps:
                    with phases("save"):
                        save_state(self.learners.accelerator, self.inputs.run.state, self.position.step)
                    if asked:
                        raise Terminated
                progress.advance(self.position.step, reward=metrics["reward/mean"], kl=metrics.get("kl", 0.0))
        if self.settings.validate_every:
            validation = self.validate(phases, last=True)
            self.log.log(self.position.step, **validation, **phases.logged)
        adapter = save_trained(
            self.learners.plain_policy(), self.learners.tokenizer, self.inputs.run, self.inputs.start
        )
        return self.summary() | adapter

    def sample(self, phases: Phases) -> tuple[list[Group], dict[str, float]]:
        """Completions of the next prompts with their rewards: the groups that the method accepts, numbers about all.

        For groups that it refuses further prompts are taken, `resample_rounds` times; a step may end with fewer groups
        than it wanted, or none.
        """
        settings, step = self.settings, self.position.step
        accepted: list[Group] = []
        sampled: list[Group] = []
        for attempt in range(1 + settings.resample_rounds):
            wanted = settings.prompts_per_step - len(accepted)
            if not wanted:
                break
            prompts = take_prompts(self.prompts, self.position.cursor, wanted, self.inputs.seed)
            self.position.cursor += wanted
            seed = derive_seed(self.inputs.seed, "rollout", step, attempt)
            rollout = self.rollouts.take(prompts, step, seed, phases)
            # Of all rounds: in a late one of few prompts every finished completion may be a right answer.
            ended = (reward for group in sampled for reward in group.rewards[group.finished].tolist())
            groups = self.reward_groups(prompts, rollout, min(ended, default=math.inf))
            sampled += groups
            accepted += [group for group in groups if self.method.accept(group)]
        metrics = sampling_metrics(sampled, settings.gold_source, settings.truncation)
        counts = {"groups_accepted": float(len(accepted)), "groups_refused": float(len(sampled) - len(accepted))}
        return accepted, metrics | counts

    def reward_groups(
        self, prompts: Sequence[RenderedPrompt], rollout: ScoredRollout, lowest: float = math.inf
    ) -> list[Group]:
        """Completions and their rewards by prompt; `lowest` is that of the step's finished completions so far."""
        settings, n = self.settings, self.settings.samples_per_prompt
        completions, scores = rollout
        finished = torch.tensor([c.finish_reason == "stop" for choices in completions for c in choices])
        rewards = terminal_rewards(
            weighted_sum(scores, settings.rewards), finished, settings.truncation, settings.truncation_reward, lowest
        )
        return [
            Group(
                prompt,
                completions[i],
                rewards[i * n : (i + 1) * n],
                {source: values[i * n : (i + 1) * n] for source, values in scores.items()},
            )
            for i, prompt in enumerate(prompts)
        ]

    def look_back(self, groups: Sequence[Group]) -> Batch:
        """What the models say about the rollout before they learn from it, without gradients."""
        learners, temperature = self.learners, self.settings.temperature
        batch = collate(groups, learners.device)
        if self.recomputes:
            batch.logprobs = torch.zeros_like(batch.sampled_logprobs)
        batch.outputs.update({name: torch.zeros_like(batch.logprobs) for name in learners.extra})
        if learners.reference is not None:
            batch.ref_logprobs = torch.zeros_like(batch.logprobs)
        for index in self.micro_batches(batch):
            rows = self.rows(batch.select(index))
            with torch.inference_mode():
                if self.recomputes:
                    logprobs, _ = completion_logprobs(learners.policy, rows, temperature)
                    batch.record(index, batch.logprobs, logprobs)
                if batch.ref_logprobs is not None:
                    # In the policy's own precision, or rounding would pass for divergence.
                    with learners.accelerator.autocast():
                        ref_logprobs, _ = completion_logprobs(learners.reference, rows, temperature)
                    batch.record(index, batch.ref_logprobs, ref_logprobs)
                for name, module in learners.extra.items():
                    batch.record(index, batch.outputs[name], completion_outputs(module, rows))
        batch.importance = correction(batch.logprobs, batch.sampled_logprobs, batch.mask, self.settings.importance_cap)
        return batch

    @property
    def recomputes(self) -> bool:
        """Whether π_old is the trainer's own in this step: as `old_logprobs` says."""
        wish = self.settings.old_logprobs
        return wish == "recomputed" or (wish == "auto" and not self.position.engine_agrees)

    def micro_batches(self, batch: Batch) -> list[list[int]]:
        """The rows of a batch in the parts that go through the models at once."""
        return self.learners.layout.split(
            batch.prompt_ids, batch.completion_ids, batch.groups.tolist(), self.settings.micro_batch_tokens
        )

    def rows(self, batch: Batch) -> Rows:
        """These completions as the models read them."""
        return self.learners.layout.rows(
            batch.prompt_ids, batch.completion_ids, batch.groups.tolist(), self.learners.device
        )

    def credit(self, batch: Batch) -> dict[str, float]:
        """Asks the method what each token deserves. Under the rule `mask`, truncated rows have left by then: neither
        the loss nor the whitening of the others' advantages sees them."""
        if self.settings.truncation == "mask":
            batch.mask[~batch.finished] = False
        credit, metrics = self.method.credit(batch)
        batch.credit.update(credit)
        return metrics

    def update(self, batch: Batch) -> dict[str, float]:
        """Some epochs of minibatches over the rollout; parts of the loss and norms, averaged over the minibatches.

        On the first minibatch the trainer's log-probabilities are still those of the weights that sampled: there they
        are compared with the engine's, before anything has been learnt.
        """
        settings, step = self.settings, self.position.step
        averages: dict[str, float] = defaultdict(float)
        agreement: dict[str, float] = {}
        lr = self.learners.set_learning_rates(step)
        for epoch in range(settings.epochs):
            seed = derive_seed(self.inputs.seed, "minibatches", step, epoch)
            minibatches = split_minibatches(batch.groups.tolist(), settings.minibatches, seed)
            for rows in minibatches:
                parts, differences = self.accumulate(batch.select(rows))
                if not agreement:
                    agreement = mismatch_metrics(differences)
                    check_mismatch(agreement, settings.mismatch_limit, step)
                for name, value in (parts | self.learners.step()).items():
                    averages[name] += value / (len(minibatches) * settings.epochs)
        agreement["old_logprobs/recomputed"] = float(self.recomputes)
        self.position.engine_agrees = agreement["engine/mismatch_mean"] <= EXACT
        return averages | agreement | {"lr": lr, "optimizer_steps": float(len(minibatches) * settings.epochs)}

    def accumulate(self, batch: Batch) -> tuple[dict[str, float], list[torch.Tensor]]:
        """The gradient of one minibatch, summed over micro-batches; parts of the loss, and |engine − trainer| of all
        sampled tokens: where truncated ones have no loss, stale weights would otherwise pass in a minibatch of them."""
        tokens, sequences = max(int(batch.mask.sum()), 1), max(int(batch.mask.any(dim=1).sum()), 1)
        parts: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.learners.device))
        differences = []
        for index in self.micro_batches(batch):
            minibatch = self.look_now(batch.select(index), tokens, sequences)
            loss, of_loss = self.method.loss(minibatch)
            self.learners.accelerator.backward(loss)
            for name, value in {**of_loss, "entropy": minibatch.token_mean(minibatch.entropy)}.items():
                parts[name] += value.detach()
            difference = (minibatch.rows.sampled_logprobs - minibatch.logprobs.detach()).abs()
            differences.append(difference[minibatch.rows.sampled])
        return {name: float(value) for name, value in parts.items()}, differences

    def look_now(self, batch: Batch, tokens: int, sequences: int) -> Minibatch:
        """What the models say about these rows now, with gradients."""
        rows = self.rows(batch)
        logprobs, entropy = completion_logprobs(
            self.learners.policy, rows, self.settings.temperature, with_entropy=True
        )
        assert entropy is not None
        if batch.importance is not None:
            logprobs = scale_gradient(logprobs, batch.importance)
        outputs = {name: completion_outputs(module, rows) for name, module in self.learners.extra.items()}
        return Minibatch(batch, logprobs, entropy, outputs, tokens, sequences)

    def validate(self, phases: Phases, last: bool = False) -> dict[str, float]:
        """Gold and learned reward on the validation prompts, when it is time."""
        every = self.settings.validate_every
        if not every or (self.position.step % every and not last):
            return {}
        with phases("validation"):
            return validate(
                self.policy,
                self.reward,
                self.sources,
                self.held_out,
                self.position.step,
                self.settings,
                self.inputs.seed,
            )

    def different_prompts(self) -> int:
        """Prompts taken so far, those of refused groups included, one that came again counted once."""
        taken = take_prompts(self.prompts, 0, min(self.position.cursor, len(self.prompts)), self.inputs.seed)
        return len({tuple(prompt.ids) for prompt in taken})

    def summary(self) -> dict[str, Any]:
        """What provenance keeps."""
        summary = run_summary(self.log.rows())
        return {
            "steps": self.position.step,
            **summary,
            "totals": {"prompts_seen": self.different_prompts(), **summary["totals"]},
            "repeated_pushes": self.policy.repeated_pushes,
        }
