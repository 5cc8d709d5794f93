"""An evaluation through a service works where torch and accelerate cannot be imported and no weights are at hand."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain.core.files import read_jsonl
from posttrain.core.wire import CONTRACT, CONTRACT_HEADER
from posttrain.data.chat import load_tokenizer
from posttrain.data.nano.corpus import evaluation_items

pytestmark = pytest.mark.long

WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    # Not None in sys.modules: `datasets` takes a name there, whatever it stands for, as a sign to import it.
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("torch", "accelerate", "peft", "trl")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
from posttrain.core.cli import run
for arguments in {commands!r}:
    status = run(arguments)
    if status:
        sys.exit(status)
assert not {{"torch", "lm_eval.models.huggingface"}} & set(sys.modules)
"""


class Stub(BaseHTTPRequestHandler):
    """Answers every prompt with `#### 7`, and gives every token the log-probability -1."""

    def do_GET(self):
        self._answer({"data": [{"id": "policy@0", "version": 0, "sha256": "0" * 64}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choices = []
        for index, prompt in enumerate(asked["prompt"]):
            choice = {"index": index, "text": "#### 7", "finish_reason": "stop"}
            if asked.get("echo"):
                values = [-1.0] * (len(prompt) + 1)  # the server's own token comes last
                choice["logprobs"] = {"token_logprobs": values, "top_logprobs": [{"t": value} for value in values]}
            choices.append(choice)
        self._answer({"choices": choices})

    def _answer(self, body):
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header(CONTRACT_HEADER, str(CONTRACT))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def stub_service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def without_torch(place, *commands):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(commands=commands)],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
    )


@pytest.fixture
def weightless(tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (folder / "model.safetensors").unlink()
    return folder


def test_a_service_is_evaluated_without_torch_and_without_weights(weightless, tmp_path):
    with stub_service() as url:
        asked = ["eval", "--tokenizer", str(weightless), "--backend", "service", "--policy-url", url, "--limit", "6"]
        asked += ["--tasks", "nano_problems,nano_choice", "--out", str(tmp_path / "out"), "--json"]
        done = without_torch(tmp_path, asked, ["eval", "show", str(tmp_path / "out"), "--jsonl"])
    assert done.returncode == 0, done.stderr
    assert "PyTorch" not in done.stderr  # that it is missing is no news here
    told, *shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["task"] for result in told["results"]] == ["nano_problems", "nano_choice"]
    assert len(shown) == 12
    problems = list(read_jsonl(tmp_path / "out/nano_problems.jsonl"))
    assert {(item["text"], item["finish_reason"]) for item in problems} == {("#### 7", "stop")}
    # Each token has the same log-probability, so the choice of the fewest tokens is the likeliest, the first of equals.
    tokenizer = load_tokenizer(weightless)
    for item, asked_item in zip(
        read_jsonl(tmp_path / "out/nano_choice.jsonl"), evaluation_items("choice", "test"), strict=False
    ):
        lengths = [len(tokenizer.encode(choice)) for choice in asked_item["choices"]]
        assert item["prediction"] == lengths.index(min(lengths))


@pytest.mark.parametrize("backend", ["hf", "vllm"])
def test_what_computes_here_says_what_to_install(backend, weightless, tmp_path):
    done = without_torch(tmp_path, ["eval", str(weightless), "--tasks", "nano_choice", "--backend", backend])
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"--backend {backend} needs torch and accelerate, not installed here" in line
    assert "pip install 'posttrain-eval-harness[hf]'" in line
    assert "--backend service --policy-url" in line
