"""The two services of one run: its own, started when first needed, or running ones named by URL.

Whoever samples pushes the weights that it samples from under a version of its own, so any policy service of the same
architecture will do. The reward service is started anew when a reward model joins it.
"""

import json
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from posttrain.core.clients import PolicyClient, RewardClient
from posttrain.core.stock_vllm import StockVllm, connect_policy
from posttrain.core.supervised import VLLM_READY_SECONDS, SupervisedService, vllm_python
from posttrain.rollout.settings import Dtype, EngineKind, VllmSettings


@dataclass(frozen=True)
class Lent:
    """Services for another process: their addresses, None for what it does not need, and the process ids of those that
    were started here."""

    policy: str | None
    reward: str | None
    pids: tuple[int, ...]


class RunServices:
    """Context manager around a run; whatever it started has ended when the block is left."""

    def __init__(
        self,
        logs: Path,
        sources: dict[str, str],
        threads: int | None,
        policy_url: str | None = None,
        reward_url: str | None = None,
        engine: EngineKind = "auto",
        vllm: VllmSettings = VllmSettings(),
        dtype: Dtype = "auto",
    ) -> None:
        self._logs, self._sources = logs, sources
        self._engine, self._vllm, self._dtype = engine, vllm, dtype
        self._threads = ["--threads", str(threads)] if threads else []
        self._policy_url, self._reward_url = policy_url, reward_url
        self._own: dict[str, SupervisedService] = {}
        self._policy: PolicyClient | None = None
        self._started_with: Path | None = None
        self._reward: tuple[Path | None, RewardClient] | None = None
        self._policy_stack, self._reward_stack = ExitStack(), ExitStack()

    def __enter__(self) -> "RunServices":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._policy_stack, self._reward_stack:
            pass

    def refuse_unfit_policy(self) -> None:
        """RequestError when the policy service of this run cannot be trained with; better told before other stages."""
        if self._policy_url:
            client = self._connect(self._policy_url)
            if isinstance(client, StockVllm):
                client.refuse_unless_trainable()
        elif self._engine == "vllm":
            vllm_python()

    def policy(self, checkpoint: Path, adapter: bool = False) -> PolicyClient:
        """A client of the policy service, which starts from `checkpoint` if it is not running yet. For a stage that
        trains an `adapter` an own one starts anew if it began with another: adapters are merged into that."""
        if adapter and self._started_with not in (None, checkpoint):
            self._policy_stack.close()
            self._policy = None
        return self._policy or self._connect(self._policy_url or self._start_policy(checkpoint))

    def lend(self, checkpoint: Path | None, scores: bool, model: Path | None, adapter: bool = False) -> Lent:
        """What another process needs of the services: the policy service (as for `policy`) if it has a `checkpoint` to
        start from, the reward service (as for `reward`) if it `scores`."""
        policy = reward = None
        pids = []
        if checkpoint:
            self.policy(checkpoint, adapter)
            policy = self._policy_url or self._own["policy"].url
            pids += [self._own["policy"].pid] if "policy" in self._own else []
        if scores:
            self.reward(model)
            reward = self._reward_url or self._own["reward"].url
            pids += [self._own["reward"].pid] if "reward" in self._own else []
        return Lent(policy, reward, tuple(pids))

    def _connect(self, url: str) -> PolicyClient:
        self._policy = self._policy_stack.enter_context(closing(connect_policy(url)))
        return self._policy

    def _start_policy(self, checkpoint: Path) -> str:
        self._started_with = checkpoint
        arguments = [str(checkpoint), "--engine", self._engine]
        if self._dtype != "auto":
            arguments += ["--set", f"dtype={self._dtype}"]
        if self._engine != "vllm":
            return self._start("policy", arguments, self._policy_stack)
        for name, value in self._vllm.model_dump().items():
            arguments += ["--set", f"vllm.{name}={json.dumps(value)}"]
        return self._start("policy", arguments, self._policy_stack, vllm_python(), VLLM_READY_SECONDS)

    def reward(self, model: Path | None) -> RewardClient:
        """A client of a reward service with the recipe's sources and, if `model` is given, that as `rm`."""
        wanted = model or (self._reward[0] if self._reward else None)
        if self._reward is None or self._reward[0] != wanted:
            self._reward_stack.close()
            url = self._reward_url or self._start("reward", self._reward_arguments(wanted), self._reward_stack)
            client = self._reward_stack.enter_context(closing(RewardClient(url)))
            self._reward = (wanted, client)
        return self._reward[1]

    def _reward_arguments(self, model: Path | None) -> list[str]:
        named = [part for name, target in self._sources.items() for part in ("--source", f"{name}={target}")]
        return [*([str(model)] if model else []), *named]

    def _start(
        self,
        name: str,
        arguments: list[str],
        stack: ExitStack,
        python: Path | None = None,
        ready_seconds: float = SupervisedService.READY_SECONDS,
    ) -> str:
        arguments = [name, *arguments, *self._threads]
        service = SupervisedService(name, arguments, self._logs / f"{name}.log", python, ready_seconds)
        self._own[name] = stack.enter_context(service)
        print(f"{name} service ready on {service.url}", file=sys.stderr)
        return service.url
