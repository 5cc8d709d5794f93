"""Settings of the policy service: what it serves and its limits.

`posttrain serve policy` writes them into the environment variable `POSTTRAIN_POLICY` as JSON; the service reads them
there, so that a container needs nothing but that variable. The API key is not among them: it stays in
`POSTTRAIN_API_KEY`.
"""

import json
import os
from typing import Literal

from pydantic import Field

from posttrain.core.config import Settings, validate
from posttrain.core.errors import RequestError

ENVIRONMENT = "POSTTRAIN_POLICY"

EngineKind = Literal["auto", "native", "torch", "vllm"]
Dtype = Literal["auto", "float32", "bfloat16"]


class VllmSettings(Settings):
    """What the engine `vllm` is given besides the checkpoint."""

    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Part of the GPU's memory that vLLM takes for weights and cache; less where a trainer shares the card."""
    sleep: bool = False
    """Give the GPU's memory back whenever nothing is generated, weights to the host (vLLM's sleep level 1): for a
    trainer on the same card. Not on a CPU."""


class PolicyServiceSettings(Settings):
    """What the policy service serves, and how much of it at once."""

    checkpoint: str
    """Folder or Hub id of a causal language model with its tokenizer; its weights are version 0."""
    engine: EngineKind = "auto"
    """What generates. `auto`: the best of posttrain's own, `native` (C++ on a CPU, known architectures) or `torch` (any
    model's own modules); `vllm`: vLLM, whose environment the service then runs in."""
    dtype: Dtype = "auto"
    """What a GPU computes in, `auto` being what the checkpoint is saved in: float32, half as fast, for one that was
    trained here. On a CPU every engine computes in float32, and says in the log that it was asked for another."""
    vllm: VllmSettings = VllmSettings()
    """For `engine: vllm`."""
    name: str = Field(default="policy", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The model's name in requests; a version follows it after an @."""
    max_batch: int = Field(default=256, ge=1)
    """Sequences generated together. More is faster until memory runs out; on the nano model 256 is enough."""
    max_sequences: int = Field(default=16384, ge=1)
    """Most sequences (prompts times n) of one request; more are refused."""
    max_waiting: int = Field(default=65536, ge=1)
    """Sequences that may wait over all requests; a request beyond gets 503 and may come again."""
    max_seconds: float = Field(default=600.0, gt=0, le=86400)
    """Longest that a request may take; then 504. A request asks for less with the header `X-Posttrain-Timeout`."""
    in_flight: Literal["finish", "restart"] = "finish"
    """What becomes of requests in flight when weights are pushed. `finish`: they end on the version they began on.
    `restart`: those that name no version and do not stream begin anew on the new weights."""
    threads: int = Field(default=0, ge=0)
    """Threads of a forward pass; 0 takes one for each core. The same number gives the same bits."""
    max_upload_mb: int = Field(default=16384, ge=1)
    """Largest weights file in MiB. One over twice the model's own size is refused in any case."""
    max_body_mb: int = Field(default=64, ge=1)
    """Largest body of any other request in MiB."""


def from_environment() -> PolicyServiceSettings:
    """The settings in `POSTTRAIN_POLICY`; RequestError when it is not set or names what is wrong in it."""
    text = os.environ.get(ENVIRONMENT)
    if not text:
        raise RequestError(f'{ENVIRONMENT} is not set; give it {{"checkpoint": "path or Hub id"}}')
    try:
        mapping = json.loads(text)
    except ValueError:
        raise RequestError(f"{ENVIRONMENT} is not JSON; it holds the policy service's settings") from None
    return validate(PolicyServiceSettings, mapping, ENVIRONMENT)
