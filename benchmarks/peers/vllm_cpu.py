"""The policy service beside vLLM's own server on its CPU build, both over HTTP: the same model, prompts and lengths.

Ids go in and out with log-probabilities, all prompts in one request. While one side works the other's processes are
stopped, so that a waiting loop of one takes nothing from the other. vLLM gets what it asks for: Intel's OpenMP loaded
first, threads bound to cores, one or `--threads` of them, whichever is faster beside its own three processes, no seeds
(which cost it), and unless `--eager` its compiled model. It ends with one JSON object.

    python -m benchmarks.peers.vllm_cpu [--sequences 64] [--prompt 40] [--new 48] [--threads 2] [--rounds 11] [--eager]
"""

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks.side_by_side import alternate, best_of_two, report
from benchmarks.workloads import random_prompts, thread_counts
from posttrain.core.clients import PolicyClient
from posttrain.core.serving import free_port
from posttrain.core.supervised import SupervisedService, vllm_python
from posttrain.data import nano

READY_SECONDS = 300.0
CACHE_BYTES = 1 << 30


def main() -> None:
    """Prints tokens a second of both sides and the ratio of ours to vLLM's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=nano.BASE)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=40, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of a completion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--eager", action="store_true", help="vLLM without compilation")
    wish = parser.parse_args()

    vocabulary = json.loads((wish.checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    prompts = random_prompts(vocabulary, wish.sequences, wish.prompt)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vllm.log"

        def spent(threads: int) -> float:
            with vllm_server(wish.checkpoint, threads, wish.eager, log) as (_, url), closing(PolicyClient(url)) as peer:
                return best_of_two(asking(peer, prompts, wish.new))

        threads = min(thread_counts(wish.threads), key=spent)
        arguments = ["policy", str(wish.checkpoint), "--threads", str(wish.threads)]
        with (
            SupervisedService("policy", arguments, Path(folder) / "policy.log") as ours,
            vllm_server(wish.checkpoint, threads, wish.eager, log) as (process, url),
            closing(PolicyClient(ours.url)) as client,
            closing(PolicyClient(url)) as peer,
        ):
            pids = {"endpoint": ours.pid, "vllm": process.pid}
            clients = {"endpoint": client, "vllm": peer}
            stop(pids.values())
            rates = alternate(
                {name: alone(pids[name], asking(clients[name], prompts, wish.new)) for name in pids},
                wish.rounds,
                work=wish.sequences * wish.new,
            )
            carry_on(pids.values())
    report(
        "vllm_cpu",
        rates,
        "vllm",
        "tokens/s",
        sequences=wish.sequences,
        prompt=wish.prompt,
        new=wish.new,
        threads=wish.threads,
        peer_threads=threads,
        compiled=not wish.eager,
    )


@contextmanager
def vllm_server(
    checkpoint: Path, threads: int, eager: bool, log: Path
) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """vLLM's OpenAI server in its own environment, ready; its process and address."""
    python, port = vllm_python(), free_port()
    # `vllm serve` asks for a distribution named vllm, which the CPU build is not; this is the same server.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--host"]
    command += ["127.0.0.1", "--port", str(port), "--served-model-name", "policy", "--dtype", "float32"]
    command += ["--logprobs-mode", "processed_logprobs", "--kv-cache-memory-bytes", str(CACHE_BYTES)]
    command += ["--disable-log-stats", *(["--enforce-eager"] if eager else [])]
    environment = os.environ | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so"),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads])),
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment.pop("OMP_NUM_THREADS", None)
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environment) as process:
        try:
            wait_until_ready(url, process, log)
            yield process, url
        finally:
            process.terminate()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Returns when the server answers; RuntimeError with its last words when it ends or takes too long."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)  # it does not listen yet
    raise RuntimeError(f"vLLM's server did not start: {log.read_text(errors='replace')[-2000:]}")


def asking(client: PolicyClient, prompts: list[list[int]], new: int) -> Callable[[], None]:
    """One request of all prompts, every completion `new` tokens long with a log-probability for each."""
    body = {"model": "policy", "prompt": prompts, "max_tokens": new, "temperature": 1.0, "ignore_eos": True}
    body |= {"logprobs": 0, "return_token_ids": True, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

    def ask() -> None:
        choices = client.check(client.request("POST", "/v1/completions", json=body), "complete")["choices"]
        assert len(choices) == len(prompts)
        assert all(len(c["token_ids"]) == len(c["logprobs"]["token_logprobs"]) == new for c in choices)

    return ask


def alone(pid: int, call: Callable[[], None]) -> Callable[[], None]:
    """`call` with the server of `pid` running; otherwise it is stopped."""

    def run() -> None:
        carry_on([pid])
        try:
            call()
        finally:
            stop([pid])

    return run


def stop(pids: Iterable[int]) -> None:
    """Stops processes and all their children where they are."""
    _signal(pids, signal.SIGSTOP)


def carry_on(pids: Iterable[int]) -> None:
    """Lets stopped processes and all their children run again."""
    _signal(pids, signal.SIGCONT)


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            process.send_signal(number)


if __name__ == "__main__":
    main()
