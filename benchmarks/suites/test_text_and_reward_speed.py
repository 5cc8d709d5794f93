"""Micro: text to ids, verifiers, and a reward model in process; one thread."""

import pytest

from benchmarks.workloads import conversations, prompts_with_references
from posttrain.data.chat import render_completion, render_conversation, render_prompt
from posttrain.reward_model.scorer import RewardModel
from posttrain.reward_model.verifiers import BUILT_IN


@pytest.mark.benchmark(group="text")
def test_rendering_of_prompts(measure, tokenizer):
    """64 prompts through the chat template to ids."""
    messages = [row["messages"][:-1] for row in conversations(64)]
    measure(lambda: [render_prompt(tokenizer, prompt) for prompt in messages], work=64, unit="prompts", calls=4)


@pytest.mark.benchmark(group="text")
def test_rendering_of_demonstrations(measure, tokenizer):
    """64 conversations to ids and loss masks."""
    rows = conversations(64)
    measure(
        lambda: [render_conversation(tokenizer, row["messages"]) for row in rows],
        work=64,
        unit="conversations",
        calls=4,
    )


@pytest.mark.benchmark(group="reward")
def test_verifier(measure):
    """512 answers by the verifier of their kind."""
    verifier = BUILT_IN["verifier"]
    rows = [(list(map(dict, row["prompt"])), row["reference"]) for row in prompts_with_references(512)]
    answers = [row["messages"][-1]["content"] for row in conversations(512)]
    measure(
        lambda: [
            verifier.score(prompt, answer, reference) for (prompt, reference), answer in zip(rows, answers, strict=True)
        ],
        work=512,
        unit="answers",
        calls=15,
    )


@pytest.mark.benchmark(group="reward")
def test_reward_batch(measure, reward_model):
    """256 encoded answers of mixed length scored by a nano reward model."""
    model = RewardModel(str(reward_model))
    rows = [row["messages"] for row in conversations(256)]
    sequences = [render_completion(model.tokenizer, row[:-1], row[-1]["content"], finished=True) for row in rows]
    measure(lambda: model.score(sequences), work=256, unit="answers", rounds=9)
