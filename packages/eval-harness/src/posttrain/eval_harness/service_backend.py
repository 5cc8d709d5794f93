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
from posttrain.core.hashing import digest_weights
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
def vllm_service(checkpoint: str) -> Iterator["Service"]:
    """A policy service with vLLM as its engine that ends with the block; its log is kept when it fails to start.

    RequestError where vLLM's environment is missing.
    """
    import torch

    from posttrain.eval_harness.service_lm import Service

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

    Taken on trust: a stock vLLM server, which does not say what it holds (None), and a Hub id where the service was
    started with one, for these have no digest. RequestError where others are held and the checkpoint is not one file
    that could be pushed (an adapter, parts).
    """
    held = policy.models()["data"][0]
    if "sha256" not in held:
        return None
    version = int(held["version"])
    known = held["sha256"] or not Path(checkpoint).is_dir()
    if known and held["sha256"] == digest_weights(checkpoint):
        return version
    file = Path(checkpoint) / "model.safetensors"
    if not file.is_file():
        raise RequestError(
            f"{policy.url} holds {held['id']}, of which it cannot be told that it is {checkpoint}, and that has no "
            "single model.safetensors to push; merge it into one (posttrain runs export), or evaluate what the service "
            "holds, by --tokenizer in place of the checkpoint"
        )
    policy.push(version + 1, file)
    return version + 1


def held_identity(url: str, tokenizer: str) -> dict[str, Any]:
    """`{"checkpoint", "fingerprint"}` of what a service holds, by the digest that it tells, or its name and address."""
    from posttrain.core.hashing import digest_json

    with closing(connect_policy(url)) as client:
        held = client.models()["data"][0]
    name, place = str(held["id"]), _without_credentials(url)
    # A service that was started with a Hub id has no digest.
    told = held.get("sha256") or [place, name]
    return {"checkpoint": f"{name} at {place}", "fingerprint": digest_json([told, tokenizer])}


def _without_credentials(url: str) -> str:
    """The address as results may keep it."""
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
