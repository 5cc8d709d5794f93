"""`posttrain serve policy` refuses what cannot be served in one line, before a server starts."""

import json
import shutil
import socket
import subprocess
import sys

import pytest

from posttrain.core.cli import run
from posttrain.data import nano
from posttrain.rollout.settings import ENVIRONMENT


def refused(capsys, *arguments):
    status = run(["serve", "policy", *map(str, arguments)])
    message = capsys.readouterr().err
    assert status == 2
    return " ".join(message.split())


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_no_folder(capsys, tmp_path):
    assert "is not a checkpoint folder" in refused(capsys, tmp_path / "none")


def test_a_home_that_nobody_has(capsys):
    assert "there is no such home folder" in refused(capsys, "~nobody-of-that-name/model")


def test_no_config(capsys, tmp_path):
    assert "has no config.json" in refused(capsys, tmp_path)


def test_broken_config(capsys, folder):
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(capsys, folder)


def test_no_tokenizer(capsys, folder):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(capsys, folder)


def test_no_weights(capsys, folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refused(capsys, folder)


def test_pickles_only(capsys, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickled weights only" in refused(capsys, folder)


def test_reward_model(capsys, folder):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["Qwen2ForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "a policy is a causal language model" in refused(capsys, folder)


def test_port_in_use(capsys, checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in refused(capsys, checkpoint, "--port", port)


def test_name_with_a_version_sign(capsys, checkpoint):
    assert "'name'" in refused(capsys, checkpoint, "--name", "policy@1")


def test_nano_is_the_base_that_comes_with_the_data_package(monkeypatch):
    served = {}
    monkeypatch.setattr("posttrain.rollout.command.serve_in_foreground", lambda service, **how: served.update(how))
    assert run(["serve", "policy", "nano"]) == 0
    assert json.loads(served["environment"][ENVIRONMENT])["checkpoint"] == str(nano.BASE)


def test_the_command_imports_nothing_heavy():
    code = (
        "import sys, posttrain.rollout.command, posttrain.rollout.checkpoint, posttrain.rollout.settings;"
        "print(sorted({'torch', 'transformers', 'bentoml', 'fastapi'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
