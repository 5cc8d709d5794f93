"""vLLM beside our own engine, on its CPU build: same ids, log-probabilities to 1e-4, new weights at run time.

Two ways to it: our policy service over its engine, and its own unmodified server behind POLICY_URL. Servers run from
.venv-vllm, which `make peer-vllm` makes; this process has our engine and transformers, which judge.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from posttrain.core.clients import PolicyClient, StaleVersion
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.serving import free_port
from posttrain.core.stock_vllm import StockVllm, connect_policy
from posttrain.core.supervised import SupervisedService
from posttrain.data.nano import BASE
from posttrain.rollout.load import load_engine
from posttrain.rollout.sampling import Sampling

PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
TOLERANCE = 1e-4
SMALL = (
    "data.sft.rows=256",
    "sft.epochs=1",
    "data.preference_prompts.rows=48",
    "preferences.chunk_prompts=16",
    "rm.epochs=1",
    "ppo.steps=3",
    "ppo.prompts_per_step=16",
    "evaluation.limit=12",
    "evaluation.policy_prompts=12",
    "threads=1",
)

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PYTHON.is_file(), reason="vLLM's environment is not here; `make peer-vllm` makes it"),
]


def tokens(count: int = 8, length: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(3, 1000, (count, length), generator=generator).tolist()


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def perturbed(folder: Path, seed: int) -> torch.nn.Module:
    model, generator = load(folder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def weights_file(model: torch.nn.Module) -> bytes:
    return save({name: parameter.detach().contiguous() for name, parameter in model.named_parameters()})


@torch.no_grad()
def forced(model: torch.nn.Module, prompt: list[int], completion: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Float[len(completion)]: what transformers' own forward pass says of a completion."""
    logprobs = (model(torch.tensor([[*prompt, *completion]])).logits[0] / temperature).log_softmax(-1)
    return logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


def largest_gap(model: torch.nn.Module, prompts, completions, temperature: float = 1.0) -> float:
    return max(
        float((forced(model, prompt, c.token_ids, temperature) - torch.tensor(c.logprobs)).abs().max())
        for prompt, group in zip(prompts, completions, strict=True)
        for c in group
    )


@torch.no_grad()
def assert_same_greedy(model: torch.nn.Module, prompts, theirs, ours) -> None:
    """Equal ids up to the first place where the best two logits are within the tolerance, if there is one."""
    for prompt, left, right in zip(prompts, theirs, ours, strict=True):
        if left == right:
            continue
        place = next(
            (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
        )
        best = model(torch.tensor([[*prompt, *left[:place]]])).logits[0, -1].topk(2).values
        assert float(best[0] - best[1]) <= TOLERANCE, f"place {place} differs: {left[place]} and {right[place]}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A random Llama with a head of its own, in the nano lab's vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=1012,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 12  # neither flat nor certain
    return saved(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    """The nano base with a head of its own."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    return saved(model, tmp_path_factory.mktemp("untied"))


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BASE / name, folder)
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Our policy service over vLLM's engine, with the nano base."""
    arguments = ["policy", str(BASE), "--engine", "vllm", "--threads", "1"]
    log = tmp_path_factory.mktemp("service") / "policy.log"
    with SupervisedService("policy", arguments, log, PYTHON, 300.0) as running:
        yield running.url


@pytest.fixture(scope="module")
def llama_service(llama, tmp_path_factory):
    arguments = ["policy", str(llama), "--engine", "vllm", "--threads", "1"]
    log = tmp_path_factory.mktemp("service") / "policy.log"
    with SupervisedService("policy", arguments, log, PYTHON, 300.0) as running:
        yield running.url


@pytest.fixture(scope="module")
def stock(untied, tmp_path_factory):
    """vLLM's own server, as its user starts it for training."""
    log = tmp_path_factory.mktemp("stock") / "vllm.log"
    url = f"http://127.0.0.1:{(port := free_port())}"
    # `vllm serve` asks for a distribution named vllm, which the CPU build is not; this is the same server.
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(untied), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "nano", "--dtype", "float32", "--enforce-eager"]
    command += ["--logprobs-mode", "processed_logprobs", "--kv-cache-memory-bytes", str(1 << 29)]
    command += ["--enable-lora", "--max-lora-rank", "16"]
    # Without it a seeded request whose prompt is computed in pieces ends the CPU build.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
    environment = os.environ | {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
    }
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            wait_for(url + "/health", process, log)
            yield url
        finally:
            process.terminate()


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        with suppress(httpx.TransportError):  # it does not listen yet; that it lives is asserted above
            if httpx.get(url, timeout=2.0, trust_env=False).status_code == 200:
                return
        time.sleep(0.3)
    pytest.fail(f"no answer after {seconds} s: {log.read_text()[-2000:]}")


@pytest.mark.parametrize("which", ["nano", "llama"])
def test_greedy_ids_are_ours_and_logprobs_those_of_transformers(which, service, llama_service, llama):
    url, folder = (service, BASE) if which == "nano" else (llama_service, llama)
    model, prompts = load(folder), tokens()
    with closing(PolicyClient(url)) as client:
        greedy = client.complete(prompts, version=None, max_tokens=48, temperature=0.0)
        sampled = client.complete(prompts, version=None, max_tokens=48, n=2, temperature=0.7, seed=1)
    ours = load_engine(folder).generate(prompts, Sampling(max_tokens=48, temperature=0.0))
    assert_same_greedy(model, prompts, [g[0].token_ids for g in greedy], [g[0].token_ids for g in ours])
    assert largest_gap(model, prompts, greedy) < TOLERANCE
    assert largest_gap(model, prompts, sampled, temperature=0.7) < TOLERANCE


@pytest.mark.parametrize("which", ["service", "stock"])
def test_what_our_engine_sampled_vllm_scores_alike(which, service, stock, untied):
    url, model, folder = (service, "policy", BASE) if which == "service" else (stock, "nano", untied)
    prompts = tokens()
    ours = load_engine(folder).generate(prompts, Sampling(max_tokens=32), seed=2)
    texts = [[*prompt, *group[0].token_ids] for prompt, group in zip(prompts, ours, strict=True)]
    body = {"model": model, "prompt": texts, "max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 0}
    answer = httpx.post(url + "/v1/completions", json=body, timeout=120.0, trust_env=False).json()
    for prompt, group, choice in zip(prompts, ours, answer["choices"], strict=True):
        length = len(group[0].token_ids)
        told = choice["logprobs"]["token_logprobs"][len(prompt) : len(prompt) + length]
        assert torch.allclose(torch.tensor(told), torch.tensor(group[0].logprobs), atol=TOLERANCE, rtol=0)


def test_a_seed_gives_the_same_completions_whatever_runs_beside(service):
    with closing(PolicyClient(service)) as client:
        alone = client.complete(tokens()[:1], version=None, max_tokens=24, n=3, seed=7)
        among = client.complete(tokens(), version=None, max_tokens=24, n=3, seed=7)
        other = client.complete(tokens()[:1], version=None, max_tokens=24, n=3, seed=8)
    assert [c.token_ids for c in alone[0]] == [c.token_ids for c in among[0]]
    assert len({tuple(c.token_ids) for c in [*alone[0], *other[0]]}) == 6


def test_pushed_weights_answer_and_requests_in_flight_keep_theirs(service):
    old, new, prompts = load(BASE), perturbed(BASE, 1), tokens()
    with closing(PolicyClient(service)) as client:
        before = client.models()["data"][0]["version"]
        if before:
            old = None  # another test has pushed already: what it pushed is not known here
        slow: list = []
        body = {"model": "policy", "prompt": prompts, "max_tokens": 400, "ignore_eos": True, "logprobs": 0}
        body |= {"return_token_ids": True, "seed": 1}
        thread = threading.Thread(
            target=lambda: slow.append(
                httpx.post(service + "/v1/completions", json=body, timeout=300.0, trust_env=False)
            )
        )
        thread.start()
        time.sleep(0.5)
        client.push(before + 1, weights_file(new))
        fast = client.complete(prompts, version=before + 1, max_tokens=16, n=2, seed=1)
        thread.join()
        with pytest.raises(StaleVersion):
            client.complete(prompts, version=before, max_tokens=4)
    assert slow[0].json()["model"] == f"policy@{before}"
    assert largest_gap(new, prompts, fast) < TOLERANCE
    if old is not None:
        choices = slow[0].json()["choices"]
        for prompt, choice in zip(prompts, choices, strict=True):
            told = torch.tensor(choice["logprobs"]["token_logprobs"])
            assert torch.allclose(forced(old, prompt, choice["token_ids"]), told, atol=TOLERANCE, rtol=0)


def test_weights_of_another_shape_are_refused_and_the_old_ones_go_on(service):
    wrong = save({"model.embed_tokens.weight": torch.zeros(8, 8)})
    headers = {"X-Content-SHA256": hashlib.sha256(wrong).hexdigest()}
    refused = httpx.put(f"{service}/v1/models/policy@999", content=wrong, headers=headers, trust_env=False)
    assert refused.status_code == 400
    with closing(PolicyClient(service)) as client:
        assert client.complete(tokens(2), version=None, max_tokens=4)


def test_a_client_that_goes_away_ends_its_sequences(service):
    body = {"model": "policy", "prompt": tokens(), "max_tokens": 900, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(service + "/v1/completions", json=body, timeout=1.0, trust_env=False)

    def generated() -> float:
        lines = httpx.get(service + "/metrics", trust_env=False).text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("posttrain_policy_generated_tokens_total")
        )

    time.sleep(0.5)
    counted = generated()
    time.sleep(0.5)
    assert generated() == counted


def test_a_stop_string_ends_a_completion(service):
    prompt = "Tom has 3 apples and buys 4 more."
    body = {"model": "policy", "prompt": prompt, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    whole = httpx.post(service + "/v1/completions", json=body, trust_env=False).json()["choices"][0]["text"]
    stop = whole[len(whole) // 2 :][:3]
    cut = httpx.post(service + "/v1/completions", json=body | {"stop": stop}, trust_env=False).json()["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole.partition(stop)[0]


def test_a_stock_server_takes_full_weights_and_answers_by_them(stock, untied):
    model, prompts = perturbed(untied, 2), tokens()
    with closing(connect_policy(stock)) as client:
        assert isinstance(client, StockVllm)
        with pytest.raises(StaleVersion):
            client.complete(prompts, version=4, max_tokens=4)
        client.push(4, weights_file(model))
        completions = client.complete(prompts, version=4, max_tokens=24, n=2, seed=5)
        again = client.complete(prompts, version=4, max_tokens=24, n=2, seed=5)
    assert largest_gap(model, prompts, completions) < TOLERANCE
    assert [[c.token_ids for c in g] for g in completions] == [[c.token_ids for c in g] for g in again]
    assert sum(len({tuple(c.token_ids) for c in group}) for group in completions) > len(prompts)


def random_adapter(folder: Path) -> tuple[torch.nn.Module, bytes]:
    """A model with a LoRA adapter, and the adapter's file as it is pushed."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    adapted = get_peft_model(load(folder), LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    config = adapted.peft_config["default"].to_dict() | {"target_modules": ["q_proj", "down_proj"]}
    state = {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(adapted).items()}
    return adapted.eval(), save(state, {"adapter_config.json": json.dumps(config, default=str)})


def test_the_service_over_vllm_takes_an_adapter(service):
    adapted, file = random_adapter(BASE)
    with closing(PolicyClient(service)) as client:
        version = client.models()["data"][0]["version"] + 1
        client.push(version, file)
        completions = client.complete(tokens(), version=version, max_tokens=24, seed=5)
    assert largest_gap(adapted, tokens(), completions) < TOLERANCE


def test_a_stock_server_loads_adapters_by_name(stock, untied):
    adapted, file = random_adapter(untied)
    with closing(connect_policy(stock)) as client:
        client.push(7, weights_file(load(untied)))
        client.push(8, file)
        completions = client.complete(tokens(), version=8, max_tokens=24, seed=5)
    assert largest_gap(adapted, tokens(), completions) < TOLERANCE


def test_a_tied_head_on_the_stock_cpu_build_is_refused_in_one_line(stock):
    with closing(connect_policy(stock)) as client, pytest.raises(RequestError, match="tied to the embedding"):
        client.push(9, weights_file(load(BASE)))


@pytest.mark.parametrize("way", ["engine", "stock"])
def test_ppo_trains_with_vllm(way, request, untied, tmp_path):
    overrides, environment = [*SMALL], dict(os.environ)
    if way == "stock":
        environment["POLICY_URL"] = request.getfixturevalue("stock")
        overrides += [f"model={untied}", "reward=verifier"]
    else:
        overrides += ["engine=vllm"]
        environment["POSTTRAIN_VLLM_PYTHON"] = str(PYTHON)
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "posttrain.core", "train", "ppo", "--runs", str(tmp_path), "--json", *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    run = Path(json.loads(done.stdout.splitlines()[-1])["run"])
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [step["engine/mismatch_max"] for step in steps if "engine/mismatch_max" in step]
    assert len(gaps) == 3
    assert max(gaps) < TOLERANCE


def test_a_stock_server_that_failed_to_load_is_not_trusted_again(stock, untied):
    # The last test of that server: vLLM mixes what was left of the failed load into a later one.
    wrong = {name: torch.zeros(3) for name, _ in load(untied).named_parameters()}
    with closing(connect_policy(stock)) as client:
        client.push(11, weights_file(load(untied)))
        with pytest.raises(WorkError, match="restarted"):
            client.push(12, save(wrong))
        with pytest.raises(StaleVersion):
            client.complete(tokens(2), version=11, max_tokens=4)
        with pytest.raises(WorkError, match="restart it"):
            client.push(13, weights_file(load(untied)))
