"""Disks that are full, for real: small file systems in memory, which root may mount; elsewhere these are skipped."""

import contextlib
import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from posttrain.core.hashing import digest_checkpoint
from posttrain.core.serving import free_port
from posttrain.data import nano

POSTTRAIN = [sys.executable, "-m", "posttrain.core"]


def mount(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture
def small(tmp_path, request):
    """A file system of so many bytes (`request.param`)."""
    folder = tmp_path / "small"
    if os.geteuid() != 0 or not mount(folder, request.param):
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    file = folder / "fill"
    with open(file, "wb", buffering=0) as opened, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        while True:
            opened.write(b"x" * 1024)
    return file


@contextlib.contextmanager
def serving(*arguments: str, **environment: str):
    """The address of a service; when the block ends it must still run, and end well."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*POSTTRAIN, "serve", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", timeout=2).status_code == 200:
                    break
            time.sleep(0.1)
        yield url
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.service
@pytest.mark.parametrize("small", ["6m"], indirect=True)
def test_a_policy_service_on_a_full_disk_refuses_weights_and_lives_on(small):
    weights = (nano.BASE / "model.safetensors").read_bytes()
    headers = {"X-Content-SHA256": hashlib.sha256(weights).hexdigest()}
    wish = {"model": "policy", "prompt": "a", "max_tokens": 3}

    with serving("policy", str(nano.BASE), "--threads", "1", TMPDIR=str(small)) as url:
        full = fill(small)
        for _ in range(2):
            refused = httpx.put(f"{url}/v1/models/policy@1", content=weights, headers=headers, timeout=30)
            assert (refused.status_code, refused.json()["error"]["code"]) == (507, "no_space")
            # Metrics of every route and outcome are written meanwhile, and have their room.
            assert httpx.post(f"{url}/v1/completions", json=wish, timeout=30).json()["model"] == "policy@0"
            streamed = httpx.post(f"{url}/v1/completions", json={**wish, "stream": True}, timeout=30)
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert [httpx.get(url + path).status_code for path in ("/readyz", "/metrics", "/none")] == [200, 200, 404]
            assert httpx.post(f"{url}/v1/completions", json={}, timeout=30).status_code == 400
        full.unlink()
        taken = httpx.put(f"{url}/v1/models/policy@1", content=weights, headers=headers, timeout=30)
        assert taken.json()["id"] == "policy@1"


@pytest.mark.slow
@pytest.mark.parametrize("small", ["15m"], indirect=True)
def test_a_stage_on_a_disk_that_fills_up_says_so_and_goes_on_once_there_is_room(small, tmp_path):
    """A state is some 11 MB (weights, Muon's and AdamW's moments), so that the first save fits and the second does
    not while the first is still there."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"#### {n + 1}"}]}
        for n in range(200)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def stage(out: Path) -> subprocess.CompletedProcess[str]:
        arguments = ["--from", nano.BASE, "--out", out, "--data", tmp_path / "rows.jsonl", "--threads", "1"]
        sets = ["epochs=1", "batch_size=16", "save_every=4", "log_every=2"]
        command = [*POSTTRAIN, "stage", "sft", *arguments, *(part for one in sets for part in ("--set", one))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True, check=False
        )

    whole = stage(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    failed = stage(small / "run")
    assert failed.returncode == 1, failed.stderr
    said = failed.stderr.strip().splitlines()[-1]
    assert said.startswith("error: "), failed.stderr
    assert str(small / "run") in said
    assert "Traceback" not in failed.stderr
    assert not (small / "run" / "provenance.json").exists()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
    again = stage(small / "run")
    assert again.returncode == 0, again.stderr
    assert json.loads((small / "run" / "provenance.json").read_text())["resumed"]
    assert digest_checkpoint(small / "run" / "checkpoint") == digest_checkpoint(tmp_path / "whole" / "checkpoint")
