"""Claims about best of n on tasks: what is sampled, what picks, what its results are called, and what is refused."""

import math
import random
import shutil
import subprocess
import sys
import threading

import pytest
import torch

from posttrain.core.cli import run
from posttrain.core.clients import Completion, ScoreResult
from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.core.hashing import digest_file, digest_weights
from posttrain.core.results import read_results
from posttrain.data.chat import load_tokenizer
from posttrain.eval_harness import best_of_n_command, evaluation, service_backend
from posttrain.eval_harness.best_of_n import BestOf
from posttrain.eval_harness.best_of_n_command import connect, picking_identity
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.generation_tasks import generation_tasks
from posttrain.eval_harness.model import CheckpointLM
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.service_backend import held_identity, holding

PROBLEMS = [{"id": f"p{n}", "question": f"What is 40 + {n}?", "answer": f"#### 4{n}"} for n in range(5)]


class FakeServices:
    """A sampler that says what `say(question's number, choice)` gives, and a reward that is `judge(text)`."""

    def __init__(self, checkpoint, say, judge):
        self.tokenizer = load_tokenizer(checkpoint)
        self.say, self.judge = say, judge
        self.sampled, self.scored = [], []
        self.lock = threading.Lock()

    def sample(self, prompts, *, n, max_tokens, temperature, seed):
        with self.lock:
            self.sampled.append({"prompts": prompts, "n": n, "max": max_tokens, "t": temperature, "seed": seed})
        return [[self._completion(ids, i, max_tokens, seed) for i in range(n)] for ids in prompts]

    def _completion(self, prompt, i, max_tokens, seed):
        text = self.say(self.tokenizer.decode(prompt), i, seed)
        ids = self.tokenizer.encode(text, add_special_tokens=False)[:max_tokens]
        return Completion(ids, [0.0] * len(ids), self.tokenizer.decode(ids, skip_special_tokens=True), "length")

    def score(self, sources, items):
        self.scored.append((sources, items))
        return ScoreResult(
            [{s: (1 if s == "rm" else -1) * self.judge(item["completion"]) for s in sources} for item in items], {}
        )


END = "<|im_end|>"


@pytest.fixture
def services(tiny_checkpoint, nano_items):
    nano_items(PROBLEMS)
    return lambda say, judge=len: FakeServices(tiny_checkpoint, say, judge)


def best_of(services, n=4, rewards=None, seed=0):
    return BestOf(n, services.sample, services, rewards or {"rm": 1.0}, seed)


def test_the_answer_with_the_highest_weighted_reward_is_given_and_graded(services, tiny_checkpoint):
    wanted = ["#### 41", "no", "#### 40", "maybe"]
    fake = services(lambda prompt, i, seed: wanted[i] + END, judge=lambda text: wanted.index(text))
    ours = evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake))["nano_problems"]
    assert [item["text"] for item in ours.items] == ["maybe"] * 5
    other = evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake, rewards={"rm": 1.0, "neg": 2.0}))
    assert [item["text"] for item in other["nano_problems"].items] == ["#### 41"] * 5
    assert [item["score"] for item in other["nano_problems"].items] == [0, 1, 0, 0, 0]


def test_samples_are_asked_as_the_checkpoint_itself_would_be(services, tiny_checkpoint, monkeypatch):
    fake = services(lambda prompt, i, seed: "4" + END)
    evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake, n=3), max_gen_toks=24, few_shot=2)
    with quiet():
        model = CheckpointLM(tiny_checkpoint, 5, "cpu", torch.float32, None)
    seen = []
    monkeypatch.setattr(model, "_decode", lambda prompts, *_: [seen.append(prompt) or [] for prompt in prompts])
    monkeypatch.setattr(evaluation, "_model", lambda *_: model)
    evaluate(tiny_checkpoint, ["nano_problems"], max_gen_toks=24, few_shot=2)
    assert sorted(ask["prompts"][0] for ask in fake.sampled) == sorted(seen)
    assert {(ask["n"], ask["max"], ask["t"]) for ask in fake.sampled} == {(3, 24, 1.0)}


def test_the_reward_reads_the_conversation_and_the_answer_and_no_reference(services, tiny_checkpoint):
    fake = services(lambda prompt, i, seed: "45"[i % 2] + END)
    evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake), few_shot=1, limit=1)
    ((sources, items),) = fake.scored
    assert sources == ["rm"]
    assert [message["role"] for message in items[0]["prompt"]] == ["user", "assistant", "user"]
    assert items[0]["prompt"][-1]["content"] == "What is 40 + 0?"
    # Equal answers are asked once.
    assert items == [{**items[0], "completion": c, "finish_reason": "stop", "reference": None} for c in "45"]


def test_without_a_template_the_reward_reads_the_text(services, tiny_checkpoint):
    fake = services(lambda prompt, i, seed: "4" + END)
    result = evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake), limit=1, apply_chat_template=False)
    assert fake.scored[0][1][0]["prompt"] == "What is 40 + 0?"
    assert result["nano_problems"].backend == "best_of_4, no chat template"


def test_answers_end_at_stop_strings_before_they_are_judged(services, tiny_checkpoint):
    said = ["1 Question: and a very long rest", "22" + END + "33", "", "4444"]
    fake = services(lambda prompt, i, seed: said[i])
    result = evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake), limit=1)
    judged = [(item["completion"], item["finish_reason"]) for item in fake.scored[0][1]]
    assert judged == [("1 ", "stop"), ("22", "stop"), ("", "length"), ("4444", "length")]
    item = result["nano_problems"].items[0]
    # "4444" is the longest, and was cut at its length. Of two equals the first is taken.
    assert (item["text"], item["finish_reason"]) == ("1 ", "stop")


def test_where_nothing_ended_some_answer_is_given_and_its_reason_is_length(services, tiny_checkpoint):
    fake = services(lambda prompt, i, seed: "1" * (i + 1))
    item = evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake), limit=1)["nano_problems"].items[0]
    assert (item["text"], item["finish_reason"]) == ("1", "length")


def test_an_items_answer_depends_on_seed_task_and_number_alone(services, tiny_checkpoint):
    fake = services(lambda prompt, i, seed: str(random.Random(seed + i).randrange(10**6)) + END, judge=hash)

    def texts(seed, **options):
        chosen = best_of(fake, seed=seed)
        result = evaluate(tiny_checkpoint, ["nano_problems"], best_of=chosen, **options)["nano_problems"]
        return [item["text"] for item in result.items]

    whole = texts(0)
    assert texts(0, batch_size=2) == whole
    assert texts(0, limit=3) == whole[:3]
    assert not set(texts(1)) & set(whole)
    seeds = [ask["seed"] for ask in fake.sampled[:5]]
    assert len(set(seeds)) == 5


def test_results_have_a_key_of_their_own_and_say_what_they_are(services, tiny_checkpoint, tmp_path):
    fake = services(lambda prompt, i, seed: "#### 40" + END)
    store = tmp_path / "metrics.jsonl"
    for chosen in (None, best_of(fake, n=16)):
        result = evaluate(
            tiny_checkpoint,
            ["nano_problems"],
            best_of=chosen,
            limit=2,
            max_gen_toks=8,
            results_path=store,
            out_dir=tmp_path,
            identity={"fingerprint": "f"},
        )
    assert [row["backend"] for row in read_results(store)] == ["hf, max_gen_toks 8", "best_of_16, max_gen_toks 8"]
    assert result.notes == ("each answer is the best of 16 samples at temperature 1 by 1 · rm",)
    assert [item["text"] for item in read_jsonl(tmp_path / "nano_problems.jsonl")] == ["#### 40"] * 2


def test_long_prompts_are_cut_on_the_left_and_told(services, tiny_checkpoint, nano_items):
    nano_items([{**PROBLEMS[0], "question": "long " * 300}])
    fake = services(lambda prompt, i, seed: "4" + END)
    result = evaluate(tiny_checkpoint, ["nano_problems"], best_of=best_of(fake), max_gen_toks=24)
    assert len(fake.sampled[0]["prompts"][0]) == 192 - 24
    assert "1 prompts of nano_problems were cut" in result.notes[1]


def test_tasks_that_ask_for_likelihoods_are_refused_before_anything_is_sampled(tiny_checkpoint):
    fake = FakeServices(tiny_checkpoint, lambda prompt, i, seed: "4" + END, len)
    with pytest.raises(RequestError, match=r"1 of 2 tasks ask for: nano_mc2 is a multiple_choice task"):
        evaluate(tiny_checkpoint, ["nano_problems", "nano_mc2"], best_of=best_of(fake))
    assert fake.sampled == []


def test_best_of_nothing_is_refused(services):
    fake = services(lambda prompt, i, seed: "4" + END)
    with pytest.raises(RequestError, match="best of 0"):
        best_of(fake, n=0)


def test_generation_tasks_are_told_from_the_others():
    names = ["nano_choice", "nano_problems", "nano_mc2", "gsm8k", "nano_instructions", "ifeval", "nano"]
    assert generation_tasks(names) == ["nano_problems", "gsm8k", "nano_instructions", "ifeval"]
    with pytest.raises(RequestError, match="unknown task 'nano_problem'"):
        generation_tasks(["nano_problem"])


def test_a_tag_or_group_is_of_generation_if_all_its_tasks_are(tmp_path):
    for name, output_type in (("a", "generate_until"), ("b", "generate_until"), ("c", "loglikelihood")):
        tag = "written" if name != "c" else "mixed"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ntag: {tag}\noutput_type: {output_type}\n")
    (tmp_path / "both.yaml").write_text("group: both\ntask: [a, c]\n")
    (tmp_path / "two.yaml").write_text("group: two\ntask: [a, {task: b}]\n")
    (tmp_path / "lost.yaml").write_text("group: lost\ntask: [nowhere]\n")
    assert generation_tasks(["written", "mixed", "both", "a", "two", "lost"], tmp_path) == ["written", "a", "two"]


def test_a_task_in_python_is_not_counted_among_those_that_generate(tmp_path):
    (tmp_path / "own.yaml").write_text("task: own\nclass: !function own.Task\n")
    assert generation_tasks(["own"], tmp_path) == []


def test_known_tasks_are_told_without_loading_lm_eval():
    code = (
        "import sys; from posttrain.eval_harness.generation_tasks import generation_tasks; "
        "print(generation_tasks(['nano_mc2', 'gsm8k', 'mmlu']), 'lm_eval' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['gsm8k'] False"


class FakePolicyClient:
    """A policy service that holds `sha256` as `version`."""

    url = "http://policy"

    def __init__(self, sha256, version):
        self.held = {"id": f"policy@{version}", "version": version}
        if sha256 is not None:
            self.held["sha256"] = sha256
        self.pushed = []

    def models(self):
        return {"data": [self.held]}

    def push(self, version, weights):
        self.pushed.append((version, weights))

    def complete(self, prompts, *, version, n, max_tokens, temperature, seed):
        return version


class FakeRewardClient:
    def __init__(self, url):
        self.url = url

    def sources(self):
        return {"rm": "digest", "length": "1"}


@pytest.fixture
def connected(monkeypatch, tiny_checkpoint):
    def use(sha256, version, rewards=("rm=1",), seed=0):
        policy = FakePolicyClient(sha256, version)
        monkeypatch.setattr(best_of_n_command, "connect_policy", lambda url: policy)
        monkeypatch.setattr(best_of_n_command, "RewardClient", FakeRewardClient)
        return policy, connect(tiny_checkpoint, 4, "http://p", "http://r", rewards, seed)

    return use


def version_asked(chosen):
    return chosen.sample([[1]], n=1, max_tokens=1, temperature=1.0, seed=0)


def test_the_command_makes_the_service_hold_the_checkpoint(connected, tiny_checkpoint):
    digest = digest_file(f"{tiny_checkpoint}/model.safetensors")
    policy, chosen = connected(digest, 3)
    assert (policy.pushed, version_asked(chosen)) == ([], 3)
    policy, chosen = connected("other", 3)
    assert [version for version, _ in policy.pushed] == [4]
    assert version_asked(chosen) == 4
    policy, chosen = connected(None, 0)  # a stock vLLM server says no digest
    assert (policy.pushed, version_asked(chosen)) == ([], None)


def test_what_cannot_be_pushed_is_not_taken_for_what_the_service_holds(tmp_path, tiny_checkpoint):
    shutil.copy(f"{tiny_checkpoint}/model.safetensors", tmp_path / "adapter_model.safetensors")
    for held in ("other", ""):
        with pytest.raises(RequestError, match="no single model.safetensors to push"):
            holding(FakePolicyClient(held, 0), str(tmp_path))
    with pytest.raises(RequestError, match="no single model.safetensors to push"):
        holding(FakePolicyClient("other", 0), "org/model")
    for part in ("model-1.safetensors", "model-2.safetensors"):
        (tmp_path / part).write_text(part)
    assert holding(FakePolicyClient(digest_weights(tmp_path), 2), str(tmp_path)) == 2
    assert holding(FakePolicyClient("", 0), "org/model") == 0  # the service was started with a Hub id


def test_what_a_service_holds_is_told_apart_and_keeps_no_password(monkeypatch):
    def identity(url, sha256):
        held = FakePolicyClient(sha256, 0)
        held.close = lambda: None
        monkeypatch.setattr(service_backend, "connect_policy", lambda _: held)
        return held_identity(url, "tokenizer")

    told = identity("http://user:secret@host:1/v", "")
    assert told["checkpoint"] == "policy@0 at http://host:1/v"
    assert told["fingerprint"] != identity("http://host:2/v", "")["fingerprint"]
    assert identity("http://a", "digest")["fingerprint"] == identity("http://b", "digest")["fingerprint"]


def test_another_reward_or_seed_is_another_result(connected):
    identity = {"fingerprint": "f", "checkpoint": "c"}
    fingerprints = {
        picking_identity(identity, connected("x", 0, rewards, seed)[1])["fingerprint"]
        for rewards, seed in ((["rm=1"], 0), (["rm"], 0), (["rm=2"], 0), (["rm=1", "length=-0.1"], 0), (["rm=1"], 1))
    }
    assert len(fingerprints) == 4  # rm and rm=1 are the same


def test_the_command_refuses_what_cannot_pick(connected, tiny_checkpoint):
    with pytest.raises(RequestError, match=r"no reward source 'lenght' \(did you mean 'length'\?\)"):
        connected("x", 0, ["lenght=1"])
    with pytest.raises(RequestError, match="source=weight, not 'rm=much'"):
        connected("x", 0, ["rm=much"])
    with pytest.raises(RequestError, match="by --reward-url"):
        connect(tiny_checkpoint, 4, "http://p", None, None, 0)


def test_the_command_leaves_out_tasks_of_likelihoods_and_says_so(
    services, tiny_checkpoint, tmp_path, monkeypatch, capsys
):
    fake = services(lambda prompt, i, seed: "#### 40" + END)
    fake.sources = lambda: {"rm": "digest"}
    monkeypatch.setattr(best_of_n_command, "connect", lambda *_: best_of(fake))
    arguments = ["--tasks", "nano_choice,nano_problems", "--best-of", "4", "--limit", "2", "--out", str(tmp_path)]
    assert run(["eval", tiny_checkpoint, *arguments]) == 0
    assert "left out, for best of n has no likelihoods: nano_choice" in capsys.readouterr().out
    (row,) = read_results(tmp_path / "metrics.jsonl")
    assert (row["task"], row["backend"]) == ("nano_problems", "best_of_4")
    assert math.isclose(row["metrics"]["exact_match,strict-match"]["value"], 0.5)
