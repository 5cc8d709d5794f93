"""In-process stand-ins for both services, and a tiny run: what the tests of the online loop share.

Run as a program (`python online_fakes.py FOLDER NAME STEPS`) it trains that run, so that a test can kill it.
"""

import itertools
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import safetensors.torch
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from posttrain.core.clients import Completion, ScoreResult, StaleVersion
from posttrain.core.files import write_jsonl
from posttrain.core.runs import RunDirectory
from posttrain.data.chat import load_tokenizer
from posttrain.data.nano import BASE
from posttrain.data.sources import Source
from posttrain.trainers import ppo
from posttrain.trainers.models import load_policy, save_checkpoint
from posttrain.trainers.stage import StageInputs


def tiny_model(seed=0):
    """A random Qwen2 that ends about one completion in five within eight tokens."""
    tokenizer = load_tokenizer(BASE)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Qwen2ForCausalLM(config).eval(), tokenizer


def weights(run):
    """The trained policy's tensors by name."""
    return safetensors.torch.load_file(run.checkpoint / "model.safetensors")


def same_bits(one, other):
    """Whether two runs ended with the same weights."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class FakePolicy:
    """A policy service in this process: one version at a time, seeded by (seed, prompt, choice)."""

    def __init__(self, checkpoint):
        self.model = load_policy(checkpoint).eval()
        self.tokenizer = load_tokenizer(checkpoint)
        self.version = 0
        self.asked, self.pushed = [], []

    def models(self):
        return {"object": "list", "data": [{"id": f"policy@{self.version}"}]}

    def push(self, version, weights):
        self.pushed.append(version)
        assert version > self.version or (version == self.version and self.version > 0), "contract: 409"
        missing, unexpected = self.model.load_state_dict(safetensors.torch.load_file(weights), strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}
        self.version = version
        return {"id": f"policy@{version}"}

    def complete(self, prompts, *, version, max_tokens, n=1, temperature=1.0, top_p=1.0, seed=None):
        self.asked.append(version)
        if version is not None and version != self.version:
            raise StaleVersion(f"holds {self.version}, not {version}")
        return [
            [self._complete(ids, j, i, max_tokens, temperature, seed or 0) for i in range(n)]
            for j, ids in enumerate(prompts)
        ]

    @torch.inference_mode()
    def _complete(self, prompt, j, i, max_tokens, temperature, seed):
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {j} {i}".encode()))
        ids, logprobs, finish = list(prompt), [], "length"
        for _ in range(max_tokens):
            logits = self.model(torch.tensor([ids])).logits[0, -1]
            p = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            token = int(p.argmax()) if not temperature else int(torch.multinomial(p.exp(), 1, generator=generator))
            if torch.rand((), generator=generator) < 0.05:
                token = self.tokenizer.eos_token_id
            ids.append(token)
            logprobs.append(float(p[token]))
            if token == self.tokenizer.eos_token_id:
                finish = "stop"
                break
        new = ids[len(prompt) :]
        return Completion(new, logprobs, self.tokenizer.decode(new, skip_special_tokens=True), finish)


class StubbornPolicy(FakePolicy):
    """Says that it took the weights, and keeps its own."""

    def push(self, version, weights):
        self.version = version
        return {"id": f"policy@{version}"}


class Interrupted(BaseException):
    """What ends a run in the middle, as a signal would."""


def interrupt(policy, *, version=None, request=None):
    """Makes the service raise when it is asked for this version, or at this request, counted from 1."""
    complete, count = policy.complete, itertools.count(1)

    def until(prompts, **arguments):
        if next(count) == request or (version is not None and arguments["version"] == version):
            raise Interrupted
        return complete(prompts, **arguments)

    policy.complete = until


class FakeReward:
    """`rm`: the share of lower-case letters; `verifier`: 1 for an even number of characters."""

    def __init__(self):
        self.asked = []

    def score(self, sources, items):
        self.asked.append((list(sources), items))
        known = {
            "rm": lambda text: sum(c.islower() for c in text) / max(len(text), 1),
            "verifier": lambda text: float(len(text) % 2 == 0),
        }
        scores = [{source: known[source](item["completion"]) for source in sources} for item in items]
        return ScoreResult(scores, dict.fromkeys(sources, "1"))


def tiny_settings(**changes):
    """Four prompts a step, two minibatches, two epochs."""
    values = {"steps": 4, "prompts_per_step": 4, "max_new_tokens": 8, "minibatches": 2, "epochs": 2, "save_every": 2}
    return ppo.Settings(**{**values, "micro_batch_tokens": 100, "lr": 3e-3, "critic_lr": 3e-3, **changes})


def tiny_inputs(folder, name="run", policy=None, **changes):
    """A start checkpoint and ten prompts under `folder`, fake services, and a run directory of this name."""
    start = Path(folder) / "start"
    if not start.exists():
        save_checkpoint(*tiny_model(), start)
        rows = [
            {"prompt": f"What is {i} + {i * i}?" + " Think." * (i % 3), "reference": {"answer": str(i + i * i)}}
            for i in range(10)
        ]
        write_jsonl(Path(folder) / "prompts.jsonl", rows)
    source = Source(path=str(Path(folder) / "prompts.jsonl"))
    values = {
        "run": RunDirectory(Path(folder) / name),
        "seed": 3,
        "start": start,
        "reference": start,
        "source": source,
        "validation": source,
        "policy": policy or FakePolicy(start),
        "reward": FakeReward(),
    }
    return StageInputs(**{**values, **changes})


def rows_without_times(run):
    """What metrics.jsonl says, but for what a clock says."""
    import json

    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = SimpleNamespace(folder=Path(sys.argv[1]), name=sys.argv[2], steps=int(sys.argv[3]))
    ppo.train(tiny_settings(steps=arguments.steps, save_every=1), tiny_inputs(arguments.folder, arguments.name))
