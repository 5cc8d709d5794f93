"""Finds or starts the policy service behind the backends `service` and `vllm`.

`service`: a running one, our policy service or a stock vLLM server. Given a checkpoint, it is made to hold it (a stock
server is trusted to). `vllm`: a policy service of our own in vLLM's environment, since its pins and ours differ, for as
long as the evaluation runs.
"""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.clients import PolicyClient
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.hashing import digest_file
from posttrain.core.stock_vllm import connect_policy
from posttrain.core.supervised import VLLM_READY_SECONDS, SupervisedService, vllm_python

if TYPE_CHECKING:
    from posttrain.eval_harness.service_lm import Service


@contextmanager
def running_service(url: str, checkpoint: str | None) -> Iterator["Service"]:
    """The endpoint at `url`, holding `checkpoint`; with None it is taken as it is."""
    from posttrain.eval_harness.service_lm import Service

    with closing(connect_policy(url)) as client:
        version = holding(client, checkpoint) if checkpoint is not None else None
        served = client.models()["data"][0]
        model = str(served["id"]) if version is None else f"{client.model}@{version}"
        yield Service(client, model, context=served.get("max_model_len"))


@contextmanager
def vllm_service(checkpoint: str, dtype: str | None) -> Iterator["Service"]:
    """A policy service with vLLM as its engine that ends with the block; its log is kept when it fails to start.

    RequestError where vLLM's environment is missing.
    """
    import torch

    from posttrain.eval_harness.service_lm import Service

    if dtype is not None:
        raise RequestError(
            f"--dtype {dtype}: vLLM computes in the precision that the checkpoint was saved in; leave it out"
        )
    python = vllm_python()
    log = Path(tempfile.mkdtemp(prefix="posttrain-eval-")) / "vllm.log"
    # vLLM's CPU build counts OMP_NUM_THREADS, and refuses to compute with another number.
    arguments = ["policy", checkpoint, "--engine", "vllm", "--threads", str(torch.get_num_threads())]
    try:
        with (
            SupervisedService("policy", arguments, log, python, VLLM_READY_SECONDS) as service,
            closing(PolicyClient(service.url)) as client,
        ):
            served = client.models()["data"][0]
            yield Service(client, str(served["id"]), backend="vllm", context=served.get("max_model_len"))
    except WorkError as error:
        raise WorkError(f"{error} (vLLM's log: {log})") from error
    log.unlink()
    log.parent.rmdir()


def holding(policy: PolicyClient, checkpoint: str) -> int | None:
    """The version under which the service holds this checkpoint's weights, which are pushed if it holds others.

    None, the current weights taken on trust, for a stock vLLM server, which does not say what it holds, and for a
    checkpoint that is not one file.
    """
    file = Path(checkpoint) / "model.safetensors"
    held = policy.models()["data"][0]
    if "sha256" not in held or not file.is_file():
        return None
    version = int(held["version"])
    if held["sha256"] != digest_file(file):
        version += 1
        policy.push(version, file)
    return version


def held_identity(url: str, tokenizer: str) -> dict[str, Any]:
    """`{"checkpoint", "fingerprint"}` of what a service holds, by the digest that it tells, or its name and address."""
    from posttrain.core.hashing import digest_json

    with closing(connect_policy(url)) as client:
        held = client.models()["data"][0]
    name = str(held["id"])
    return {"checkpoint": f"{name} at {url}", "fingerprint": digest_json([held.get("sha256", [url, name]), tokenizer])}
