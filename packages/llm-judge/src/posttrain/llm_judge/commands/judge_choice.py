"""Which judge `posttrain judge run` was asked for: a chat model by its name or address, or a source of rewards.

Everything that can be found wrong without asking it anything is found by `find_judge`; what that gives opens it.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.clients import RewardClient
from posttrain.core.config import validate
from posttrain.core.errors import RequestError
from posttrain.core.files import user_path
from posttrain.core.hashing import digest_checkpoint
from posttrain.core.supervised import SupervisedService
from posttrain.llm_judge.endpoints import check_plain, find_endpoint, is_url
from posttrain.llm_judge.judges.chat import ChatJudge, ChatSettings
from posttrain.llm_judge.judges.completions import NO_KEY, ChatServer
from posttrain.llm_judge.judges.prices import check_max_cost, find_price
from posttrain.llm_judge.judges.reward import RewardJudge, Scale
from posttrain.llm_judge.protocols import Protocol, load_protocol
from posttrain.llm_judge.running.limits import Limits

REWARD = "reward"
NONE = "none"
"""A temperature that is not sent."""
DEFAULT_PROTOCOL, DEFAULT_SOURCE = "alpaca", "rm"
PATIENCE = 20.0
"""Seconds for a reward service to answer at all."""

Judges = ChatJudge | RewardJudge
Opener = Callable[[ExitStack, Limits], Judges]
"""Opens the judge; what it starts for that ends with the stack."""


@dataclass(frozen=True)
class JudgeWish:
    """What the command line says of the judge; None: nothing."""

    judge: str
    """A model's name, an address, `reward`, or `reward:CHECKPOINT`."""
    protocol: str | None = None
    model: str | None = None
    """At an address that serves several."""
    source: str | None = None
    scale: Scale | None = None
    reward_url: str | None = None
    temperature: str | None = None
    """A number, or NONE: not sent. None: 0."""
    max_tokens: int | None = None
    seed: int | None = None
    extra: Mapping[str, Any] | None = None
    """Further fields of each request."""
    price_in: float | None = None
    """Of a million tokens of prompts."""
    price_out: float | None = None
    prices: Path | None = None
    max_cost: float | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    logs: Path = Path()
    """Where the log of a server that is started goes."""
    dry_run: bool = False
    """Nothing is started: the judge is there for an estimate only."""

    @property
    def is_reward(self) -> bool:
        """Whether answers are scored instead of a model asked."""
        return self.judge == REWARD or self.judge.startswith(f"{REWARD}:")


def find_protocol(wish: JudgeWish) -> Protocol | None:
    """The protocol that a chat model is asked by; None for a source of rewards, which needs none."""
    return None if wish.is_reward else load_protocol(wish.protocol or DEFAULT_PROTOCOL)


def find_judge(wish: JudgeWish, protocol: Protocol | None) -> Opener:
    """What opens the judge.

    RequestError where the wish contradicts itself, or a server has no such model or source; ServiceUnavailable where it
    does not answer.
    """
    if protocol is None:
        _check_reward(wish)
        return lambda stack, _: _open_reward(wish, stack)
    _refuse(wish, "a chat model", {"--source": wish.source, "--scale": wish.scale, "--reward-url": wish.reward_url})
    model = wish.judge
    url: str | None = None  # then the environment says both
    key: str | None = None
    sha256: str | None = None
    if is_url(wish.judge):
        endpoint = find_endpoint(wish.judge, wish.model)
        # Never the key of another kind of server.
        model, url, key = endpoint.model, endpoint.base_url, endpoint.api_key or NO_KEY
        sha256 = endpoint.digest
    elif wish.model:
        raise RequestError(f"--model is for a judge by its address, and --judge {wish.judge} is a model already")
    price = find_price(model, wish.price_in, wish.price_out, wish.prices)
    check_max_cost(wish.max_cost, price, model)
    settings = validate(
        ChatSettings,
        {
            "model": model,
            "temperature": _temperature(wish.temperature),
            "max_tokens": wish.max_tokens,
            "seed": wish.seed,
            "extra": dict(wish.extra or {}),
            "sha256": sha256,
        },
        "the judge",
    )
    ChatServer(Limits(), base_url=url, api_key=key)  # says at once whether the key is there
    return lambda _, limits: ChatJudge(settings, protocol, ChatServer(limits, base_url=url, api_key=key, price=price))


def _temperature(text: str | None) -> float | None:
    if text == NONE:
        return None
    try:
        return float(text or 0)
    except ValueError:
        raise RequestError(f"--judge-temperature takes a number or '{NONE}', not '{text}'") from None


def _check_reward(wish: JudgeWish) -> None:
    """Finds what is wrong with a source of rewards before anything else is begun."""
    asked = {
        "--protocol": wish.protocol,
        "--model": wish.model,
        "--judge-temperature": wish.temperature,
        "--judge-max-tokens": wish.max_tokens,
        "--judge-seed": wish.seed,
        "--set": wish.extra,
    }
    paid = {
        "--max-cost": wish.max_cost,
        "--price-in": wish.price_in,
        "--price-out": wish.price_out,
        "--prices": wish.prices,
    }
    # Scores are asked for in batches, of answers that many games share: no game stands for a request.
    rates = {"--requests-per-minute": wish.requests_per_minute, "--tokens-per-minute": wish.tokens_per_minute}
    _refuse(wish, "a source of rewards", asked | paid | rates)
    _, colon, checkpoint = wish.judge.partition(":")
    if colon:
        _refuse(wish, "a reward model of one's own", {"--reward-url": wish.reward_url})
        folder = user_path(checkpoint)
        if not checkpoint or not (folder / "config.json").is_file():
            raise RequestError(
                f"--judge {wish.judge} names no checkpoint; give the folder of a reward model, with its config.json"
            )
        if wish.source not in (None, DEFAULT_SOURCE):
            raise RequestError(
                f"--judge {wish.judge} has the source '{DEFAULT_SOURCE}' only, not '{wish.source}'; leave --source out"
            )
        return
    url = wish.reward_url or os.environ.get("REWARD_URL")
    if not url:
        raise RequestError(
            "--judge reward needs a reward service; name it with --reward-url or REWARD_URL, or a reward model with "
            "--judge reward:CHECKPOINT"
        )
    check_plain(url, "--reward-url" if wish.reward_url else "REWARD_URL")
    with ExitStack() as stack:
        _open_reward(wish, stack)  # says at once whether the service is there, and has the source


class _NotStarted(RewardClient):
    """The service of a checkpoint that is not started, as far as it is known beforehand."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__("http://127.0.0.1")
        self._checkpoint = checkpoint

    def sources(self) -> dict[str, str]:
        return {DEFAULT_SOURCE: digest_checkpoint(self._checkpoint)}


def _open_reward(wish: JudgeWish, stack: ExitStack) -> RewardJudge:
    _, _, checkpoint = wish.judge.partition(":")
    folder = str(user_path(checkpoint))
    if checkpoint and wish.dry_run:
        return RewardJudge(stack.enter_context(closing(_NotStarted(Path(folder)))), DEFAULT_SOURCE, wish.scale)
    if checkpoint:
        service = SupervisedService("reward", ["reward", folder], wish.logs / "reward.log")
        url = stack.enter_context(service).url
    else:
        url = wish.reward_url or os.environ["REWARD_URL"]
    client = stack.enter_context(closing(RewardClient(url, patience=PATIENCE)))
    return RewardJudge(client, wish.source or DEFAULT_SOURCE, wish.scale)


def _refuse(wish: JudgeWish, kind: str, options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        if value is not None:
            raise RequestError(f"{option} does not belong to {kind}, which --judge {wish.judge} is; leave it out")
