"""Claims about evaluation through a policy service: the likelihoods and answers of the checkpoint computed here."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from posttrain.core.cli import run
from posttrain.core.clients import PolicyClient
from posttrain.core.errors import RequestError
from posttrain.core.supervised import SupervisedService
from posttrain.data.nano import BASE
from posttrain.eval_harness.evaluation import evaluate
from posttrain.eval_harness.model import CheckpointLM
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.samples import Samples
from posttrain.eval_harness.service_backend import running_service
from posttrain.eval_harness.service_lm import Service, ServiceLM

pytestmark = pytest.mark.service

CONTEXTS = ["Q: What is 3 + 4?\nA:", "Tom has 3 apples.", "The red bird lives in the north. " * 4, ""]
CONTINUATIONS = [" 7", " 8", " and buys 17 more of them.", "#### 7"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    log = tmp_path_factory.mktemp("service") / "policy.log"
    with SupervisedService("policy", ["policy", str(BASE), "--threads", "1"], log) as service:
        yield service.url


@pytest.fixture(scope="module")
def here():
    with quiet():
        return CheckpointLM(str(BASE), 16, "cpu", torch.float32, None)


@pytest.fixture(scope="module")
def there(url):
    with quiet(), running_service(url, str(BASE)) as service:
        yield ServiceLM(str(BASE), 16, None, service)


def likelihood_requests(texts):
    pairs = [(context, continuation) for context in texts for continuation in CONTINUATIONS]
    return [Instance("loglikelihood", {}, pair, 0, metadata=("t", n, 1)) for n, pair in enumerate(pairs)]


def greedy_continuation(model, text, new_tokens):
    asked = Instance("generate_until", {}, (text, {"until": [], "max_gen_toks": new_tokens}), 0, metadata=("g", 0, 1))
    return model.generate_until([asked])[0]


def test_likelihoods_equal_those_computed_here(here, there):
    requests = likelihood_requests(CONTEXTS)
    continuation = greedy_continuation(here, CONTEXTS[0], 4)
    requests.append(Instance("loglikelihood", {}, (CONTEXTS[0], continuation), 0, metadata=("t", 99, 1)))
    ours, theirs = here.loglikelihood(requests), there.loglikelihood(requests)
    assert [value for value, _ in theirs] == pytest.approx([value for value, _ in ours], abs=1e-4)
    assert [greedy for _, greedy in theirs] == [greedy for _, greedy in ours]
    assert ours[-1][1]


def test_context_that_does_not_fit_is_cut_one_token_shorter_and_counted(here, there):
    requests = likelihood_requests(["word " * 2000])[:1]
    there.prompts_cut.clear()
    (theirs,) = there.loglikelihood(requests)
    assert there.prompts_cut == {"t": 1}
    ids, tokens = here._encode_pair(*requests[0].args)
    (ours,) = here._loglikelihood_tokens([(("", ""), ids[-(1023 - len(tokens)) :], tokens)])
    assert theirs[0] == pytest.approx(ours[0], abs=1e-4)


@pytest.mark.parametrize("task", ["nano_problems", "nano_choice", "nano_mc2", "nano_instructions"])
def test_a_task_gives_the_same_items(url, task):
    ours = evaluate(BASE, [task], limit=24)[task]
    theirs = evaluate(BASE, [task], limit=24, backend="service", service_url=url)[task]
    assert theirs.backend == "service"
    assert [item["id"] for item in theirs.items] == [item["id"] for item in ours.items]
    for mine, other in zip(ours.items, theirs.items, strict=True):
        if "text" in mine:
            assert (other["text"], other["finish_reason"]) == (mine["text"], mine["finish_reason"])
        assert other["prediction"] == mine["prediction"]
        assert other["score"] == pytest.approx(mine["score"], abs=1e-4)


def test_samples_depend_on_seed_and_item_alone(url):
    def texts(seed, limit):
        samples = Samples(3, 1.0, (1, 2), (3,), seed)
        task = evaluate(
            BASE, ["nano_problems"], limit=limit, samples=samples, backend="service", service_url=url, max_gen_toks=16
        )["nano_problems"]
        assert list(task.metrics) == ["exact_match,strict-match", "pass@1", "pass@2", "maj@3"]
        return [[sample["text"] for sample in item["samples"]] for item in task.items]

    first = texts(0, 4)
    assert texts(0, 2) == first[:2]
    assert texts(1, 2) != first[:2]
    assert len({text for item in first for text in item}) > 4


def test_service_as_it_is_needs_a_tokenizer_only_and_other_weights_are_pushed(url, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--backend", "service", "--policy-url", url, "--tasks", "nano_choice", "--limit", "4", "--json"]
    assert run(["eval", "--tokenizer", str(BASE), *asked]) == 0
    as_it_is = json.loads(capfd.readouterr().out)
    assert as_it_is["checkpoint"].startswith("policy@")
    assert run(["eval", str(BASE), *asked]) == 0
    by_folder = json.loads(capfd.readouterr().out)
    assert by_folder["results"][0]["metrics"] == as_it_is["results"][0]["metrics"]
    assert by_folder["fingerprint"] != as_it_is["fingerprint"]


def test_what_the_service_refuses_is_told_in_a_line(url):
    with PolicyClientClosing(url) as client, quiet():
        model = ServiceLM(str(BASE), 4, None, Service(client, "policy@999"))
        with pytest.raises(RequestError, match="refused to score by echo with logprobs"):
            model.loglikelihood(likelihood_requests(CONTEXTS[:1]))


class PolicyClientClosing(PolicyClient):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_backends_that_cannot_answer_are_told_before_the_work(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTTRAIN_VLLM_PYTHON", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for arguments, complaint in (
        (["--backend", "vllm", "--tasks", "nano_choice"], "make vLLM's environment with `make vllm`"),
        (["--backend", "service", "--tasks", "nano_choice"], "give its address by --policy-url"),
    ):
        assert run(["eval", str(BASE), *arguments]) == 2
        assert complaint in capfd.readouterr().err


def vllm_python():
    named = Path(os.environ.get("POSTTRAIN_VLLM_PYTHON", Path(sys.prefix).parent / ".venv-vllm/bin/python"))
    return named if named.is_file() else None


@pytest.mark.slow
@pytest.mark.skipif(vllm_python() is None, reason="vLLM has an environment of its own: make vllm")
def test_vllm_gives_the_same_items():
    ours = evaluate(BASE, ["nano_choice", "nano_problems"], limit=16)
    theirs = evaluate(BASE, ["nano_choice", "nano_problems"], limit=16, backend="vllm")
    for task in ours.requested:
        assert theirs[task].backend == "vllm"
        assert [item["prediction"] for item in theirs[task].items] == [item["prediction"] for item in ours[task].items]
