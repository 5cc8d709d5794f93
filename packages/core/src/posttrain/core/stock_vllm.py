"""A stock `vllm serve` behind POLICY_URL: the same client's methods, over what that server offers at run time.

Full weights go through its developer routes (VLLM_SERVER_DEV_MODE=1): a folder that the server can read, reload from
there, and a name for what was loaded, which a restarted server has lost. PEFT adapters are loaded by name
(VLLM_ALLOW_RUNTIME_LORA_UPDATING=1). The folder lies where Python puts temporary files: for a server on another machine
TMPDIR names a disk that both share. Written against vLLM 0.32; a server that lacks something is told off in one line.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from posttrain.core.clients import Completion, PolicyClient, StaleVersion, error_message
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.hashing import digest_file
from posttrain.core.seeds import derive_seed
from posttrain.core.weights_folder import WeightsFolder, remove_stale_folders
from posttrain.core.wire import CONTRACT_HEADER

REQUESTS_AT_ONCE = 32
ADAPTER_CONFIG = "adapter_config.json"
AS_STARTED = "default"
"""The version that a server gives the weights that it was started with."""
BROKEN = "failed to load"
"""The version that a server gets whose reload failed: vLLM 0.32 then keeps parts of the failed one among later ones."""
EXACT_SAMPLING = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Told in every request: a stock server otherwise takes these from the checkpoint's generation_config.json."""


def connect_policy(url: str, api_key: str | None = None) -> PolicyClient:
    """The client for whatever serves at `url`: our policy service, or a stock vLLM server."""
    client = PolicyClient(url, api_key)
    response = client.request("GET", "/v1/models")
    models = client.check(response, "list its models")["data"]
    if CONTRACT_HEADER in response.headers:
        return client
    served = [model for model in models if model.get("owned_by") == "vllm" and not model.get("parent")]
    if not served:
        raise RequestError(f"{url} is neither a posttrain policy service nor a vLLM server; it cannot take weights")
    client.close()
    return StockVllm(url, api_key, model=str(served[0]["id"]))


class StockVllm(PolicyClient):
    """Samples from a stock vLLM server and gives it weights."""

    def __init__(self, url: str, api_key: str | None = None, *, model: str, **options: float) -> None:
        super().__init__(url, api_key, model=model, **options)
        remove_stale_folders()
        self._labels: dict[int, str] = {}
        self._adapter: tuple[str, WeightsFolder] | None = None

    def complete(
        self,
        prompts: Sequence[list[int]],
        *,
        version: int | None,
        max_tokens: int,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """As `PolicyClient.complete`; a request a prompt, since all prompts of one share their random numbers there."""
        by_name = version is not None and self._adapter is not None and self._adapter[0] == f"{self.model}@{version}"
        model = f"{self.model}@{version}" if by_name else self.model
        if version is not None and not by_name:
            self._check_holds(version)

        def one(place: int) -> list[Completion]:
            own_seed = None if seed is None else derive_seed(seed, "prompt", place) >> 2  # it adds the choice's number
            sampling = {"n": n, "max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": own_seed}
            return self._complete(model, [prompts[place]], EXACT_SAMPLING | sampling, exact=by_name)[0]

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            completions = list(pool.map(one, range(len(prompts))))
        if version is not None and not by_name:
            self._check_holds(version)  # nobody else's weights came in between
        for completion in (completion for group in completions for completion in group):
            if completion.finish_reason not in ("stop", "length"):
                raise WorkError(f"{self.url} ended a completion with '{completion.finish_reason}'; see its log")
        return completions

    def push(self, version: int, weights: bytes | Path) -> dict[str, Any]:
        """Makes one safetensors file, full weights or a PEFT adapter, what `version` means."""
        if isinstance(weights, bytes):
            with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
                file.write(weights)
                file.flush()
                return self.push(version, Path(file.name))
        digest, header = digest_file(weights), _header(weights)
        adapter = header.get("__metadata__", {}).get(ADAPTER_CONFIG)
        if adapter is None:
            self._check_head(header)
            self._reload(weights, f"{self.model}@{version} {digest[:16]}")
            self._labels[version] = f"{self.model}@{version} {digest[:16]}"
        else:
            self._load_adapter(weights, adapter, f"{self.model}@{version}")
        return {"id": f"{self.model}@{version}", "sha256": digest}

    def merges_into(self, checkpoint: Path) -> bool:
        """Whether the server was started with this folder and holds it still: adapters go on top of what it holds. It
        tells no digest, so a folder of that path on another machine passes too; other weights there show in the
        log-probabilities."""
        roots = [model.get("root") for model in self.models()["data"] if model["id"] == self.model]
        if not any(root and Path(root).resolve() == checkpoint.resolve() for root in roots):
            return False
        without_route = self.request("GET", "/weight_info").status_code == 404
        return without_route or self._held() == AS_STARTED

    def refuse_unless_trainable(self) -> None:
        """RequestError, in one line, for what the server lacks to be trained with by full weights."""
        self._config()

    def close(self) -> None:
        """Ends the connections and removes an adapter's folder."""
        if self._adapter:
            self._adapter[1].cleanup()
        super().close()

    def _reload(self, weights: Path, label: str) -> None:
        if self._held() == BROKEN:
            raise WorkError(f"{self.url} failed to load weights before and is not sound since; restart it")
        with WeightsFolder() as folder:
            shutil.copyfile(weights, Path(folder) / "model.safetensors")
            self._post("/pause?mode=wait")
            try:
                # What is there from here on must not go by the name of what was there before.
                self._post("/update_weight_version", new_version=f"loading {label}")
                try:
                    self._post("/collective_rpc", method="reload_weights", kwargs={"weights_path": folder})
                except WorkError as error:
                    self._post("/update_weight_version", new_version=BROKEN)
                    raise WorkError(
                        f"{error}. It has to be restarted now. (It must see {folder}: TMPDIR can name a shared disk)"
                    ) from None
                if not self._post("/reset_prefix_cache")["success"]:
                    raise WorkError(f"{self.url} did not empty its prefix cache after new weights")
                self._post("/update_weight_version", new_version=label)
            finally:
                self._post("/resume")

    def _load_adapter(self, weights: Path, config: str, name: str) -> None:
        folder = WeightsFolder()
        shutil.copyfile(weights, Path(folder.name) / "adapter_model.safetensors")
        (Path(folder.name) / ADAPTER_CONFIG).write_text(config)
        body = {"lora_name": name, "lora_path": folder.name, "load_inplace": True}
        response = self.request("POST", "/v1/load_lora_adapter", json=body)
        if response.status_code == 404:
            raise RequestError(
                f"{self.url} is a stock vLLM server that loads no adapters; start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank R"
            )
        if response.status_code != 200:
            raise RequestError(f"{self.url} refused to load an adapter: {error_message(response)}")
        if self._adapter and self._adapter[0] != name:
            self.request("POST", "/v1/unload_lora_adapter", json={"lora_name": self._adapter[0]})
        if self._adapter:
            self._adapter[1].cleanup()
        self._adapter = (name, folder)

    def _config(self) -> dict[str, Any]:
        info = self.request("GET", "/server_info?config_format=json")
        if info.status_code == 404 or self.request("GET", "/weight_info").status_code == 404:
            raise RequestError(
                f"{self.url} is a stock vLLM server without routes for new weights (vLLM 0.32 has them): start it with "
                "VLLM_SERVER_DEV_MODE=1 and --logprobs-mode processed_logprobs, or use posttrain's policy service "
                "with --engine vllm"
            )
        config: dict[str, Any] = self.check(info, "describe itself")["vllm_config"]
        mode = config["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise RequestError(
                f"{self.url} reports {mode}, not those that it samples from; start it with --logprobs-mode "
                "processed_logprobs"
            )
        if _on_cpu(config) and config["scheduler_config"]["enable_chunked_prefill"]:
            raise RequestError(
                f"{self.url} is vLLM's CPU build, which a seeded request ends when its prompt is computed in pieces; "
                "start it with --no-enable-chunked-prefill"
            )
        return config

    def _check_head(self, header: dict[str, Any]) -> None:
        if _on_cpu(self._config()) and "lm_head.weight" not in header:
            raise RequestError(
                f"{self.url} is vLLM's CPU build, whose reload leaves an output head that is tied to the embedding "
                "as it was; use posttrain's policy service with --engine vllm, or a model with a head of its own"
            )

    def _check_holds(self, version: int) -> None:
        held = self._held()
        if held != self._labels.get(version):
            raise StaleVersion(f"{self.url} holds '{held}', not version {version} of this run")

    def _held(self) -> str:
        return str(self.check(self.request("GET", "/weight_info"), "tell its weights")["weight_version"])

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        response: httpx.Response = self.request("POST", path, json=body)
        if response.status_code != 200:
            raise WorkError(f"{self.url} failed at {path} (status {response.status_code}): {error_message(response)}")
        answer: dict[str, Any] = response.json()
        return answer


def _header(weights: Path) -> dict[str, Any]:
    """The header of a safetensors file: its length in 8 bytes, then JSON."""
    with weights.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _on_cpu(config: dict[str, Any]) -> bool:
    return bool(config["device_config"]["device"] == "cpu")
