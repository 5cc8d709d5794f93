"""KL of a policy from its reference, with its gold and learned reward, against plain sums and the exact KL."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from online_fakes import FakePolicy, FakeReward, StubbornPolicy, tiny_inputs, tiny_model

from posttrain.core.clients import Completion
from posttrain.core.errors import WorkError
from posttrain.data.sources import load_prompts
from posttrain.trainers import measure as module
from posttrain.trainers.measure import measure, sequence_kl
from posttrain.trainers.models import load_policy, save_checkpoint
from posttrain.trainers.rollouts import RenderedPrompt


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measure")
    inputs = tiny_inputs(folder)
    model, tokenizer = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(model, tokenizer, folder / "policy")
    return folder / "policy", inputs.start, load_prompts(inputs.source, 0)


def measured(checkpoints, policy, **changes):
    checkpoint, reference, prompts = checkpoints
    arguments = {"sources": ["rm", "verifier"], "seed": 0, "max_new_tokens": 6, **changes}
    return measure(policy, FakeReward(), prompts, checkpoint, reference, **arguments)


def test_kl_is_the_sum_over_tokens_averaged_over_prompts(checkpoints):
    result = measured(checkpoints, FakePolicy(checkpoints[0]), micro_batch_tokens=150)
    kl = [item["kl"] for item in result["items"]]
    mean = sum(kl) / len(kl)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in kl) / (len(kl) - 1))
    assert result["n"] == len(kl) == 10
    assert result["kl"]["value"] == pytest.approx(mean)
    assert result["kl"]["standard_error"] == pytest.approx(deviation / math.sqrt(10))


def test_passes_have_no_more_logits_than_there_is_room_for(checkpoints, monkeypatch):
    asked, vocabulary = [], load_policy(checkpoints[0]).config.vocab_size
    monkeypatch.setattr(module, "sequence_kl", lambda *given: asked.append(given[-1]) or [0.0] * len(given[2]))
    measured(checkpoints, FakePolicy(checkpoints[0]))
    monkeypatch.setattr(module, "MOST_LOGITS", 100 * vocabulary)
    measured(checkpoints, FakePolicy(checkpoints[0]))
    assert asked == [8192, 100]


def test_kl_of_each_item_is_that_of_a_plain_forward_pass(checkpoints):
    model, reference = load_policy(checkpoints[0]).eval(), load_policy(checkpoints[1]).eval()
    prompts = [RenderedPrompt({}, [5, 6, 7]), RenderedPrompt({}, [8])]
    ids = [[1, 2], [3, 4, 5]]

    def plain(m, prompt, completion):
        p = torch.log_softmax(m(torch.tensor([prompt + completion])).logits[0], dim=-1)
        return [float(p[len(prompt) - 1 + t, token].detach()) for t, token in enumerate(completion)]

    own = [plain(model, p.ids, c) for p, c in zip(prompts, ids, strict=True)]
    ref = [plain(reference, p.ids, c) for p, c in zip(prompts, ids, strict=True)]
    completions = [Completion(c, o, "", "stop") for c, o in zip(ids, own, strict=True)]
    for kl, o, r in zip(sequence_kl(model, reference, prompts, completions, 999), own, ref, strict=True):
        assert kl == pytest.approx(sum(o) - sum(r), abs=1e-4)


def test_kl_of_a_policy_from_itself_is_zero(checkpoints):
    checkpoint, _, prompts = checkpoints
    result = measured((checkpoint, checkpoint, prompts), FakePolicy(checkpoint))
    assert result["kl"] == {"value": 0.0, "standard_error": 0.0}


def test_sampled_kl_agrees_with_the_exact_one(checkpoints):
    """One token of 400 samples a prompt, against Σ p (log p − log q) over the vocabulary."""
    model, reference = load_policy(checkpoints[0]).eval(), load_policy(checkpoints[1]).eval()
    with torch.no_grad():
        p, q = (torch.log_softmax(m(torch.tensor([[5, 6, 7]])).logits[0, -1], dim=-1) for m in (model, reference))
    tokens = torch.multinomial(p.exp(), 400, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    completions = [Completion([token], [float(p[token])], "", "length") for token in tokens]
    kl = torch.tensor(sequence_kl(model, reference, [RenderedPrompt({}, [5, 6, 7])] * 400, completions, 4096))
    exact = float((p.exp() * (p - q)).sum())
    assert exact > 0.01
    assert abs(float(kl.mean()) - exact) < 3 * float(kl.std()) / 20


def test_rewards_are_as_the_service_gives_them(checkpoints):
    result = measured(checkpoints, FakePolicy(checkpoints[0]))
    for source in ("rm", "verifier"):
        scores = [item["scores"][source] for item in result["items"]]
        assert result["rewards"][source]["value"] == pytest.approx(sum(scores) / len(scores))


def test_a_service_that_moved_on_gets_the_checkpoint_to_measure(checkpoints):
    policy = FakePolicy(checkpoints[1])
    policy.version = 7
    result = measured(checkpoints, policy)
    assert policy.pushed == [8]
    assert result == measured(checkpoints, FakePolicy(checkpoints[0]))


def test_samples_of_other_weights_are_refused(checkpoints):
    save_checkpoint(*tiny_model(seed=5), checkpoints[0].parent / "other")
    with pytest.raises(WorkError, match="serves other weights"):
        measured(checkpoints, StubbornPolicy(checkpoints[0].parent / "other"))
