"""Settings of the judge service: its judges, the policies that it may ask for answers, and its limits.

`posttrain serve judge` writes them into the environment variable `POSTTRAIN_JUDGE` as JSON; the service reads them
there, so that a container needs nothing but that variable. Keys are not among them: settings name the environment
variables that hold them, and the service's own stays in `POSTTRAIN_API_KEY`.
"""

import json
import os
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from posttrain.core.config import Settings, validate
from posttrain.core.errors import RequestError, suggest
from posttrain.core.keys import SERVICE_KEY
from posttrain.llm_judge.judges.chat import ChatSettings
from posttrain.llm_judge.judges.completions import TIMEOUT
from posttrain.llm_judge.judges.prices import Price
from posttrain.llm_judge.judges.reward import Scale
from posttrain.llm_judge.protocols import NAMES
from posttrain.llm_judge.running.limits import LimitSettings

ENVIRONMENT = "POSTTRAIN_JUDGE"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")]
"""What clients, logs and metrics call a judge, a protocol or a policy."""
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]


class ChatBackend(ChatSettings):
    """A chat model at an OpenAI-compatible server."""

    base_url: Url | None = None
    """With or without /v1; None: OPENAI_BASE_URL, else OpenAI's own."""
    api_key_variable: str | None = None
    """The environment variable that holds the server's key, or with _FILE after it the name of a file that does. None:
    OPENAI_API_KEY where `base_url` is OPENAI_BASE_URL or None, and else no key is sent."""
    price: Price | None = None
    """Without one costs are not known."""
    timeout_seconds: float = Field(default=TIMEOUT, gt=0)
    """Without a byte of an answer."""


class RewardBackend(Settings):
    """A source of a reward service."""

    url: Url
    source: str = "rm"
    scale: Scale | None = None
    """`model`: differences of scores are log-odds; `verifier`: only their sign counts. None: a source whose version is
    a number is a verifier."""
    api_key_variable: str = SERVICE_KEY


class JudgeSettings(Settings):
    """One judge: a chat model or a reward source."""

    chat: ChatBackend | None = None
    reward: RewardBackend | None = None
    limits: LimitSettings = LimitSettings()
    """Of all requests to the service together, as long as it runs."""

    @model_validator(mode="after")
    def _is_one_judge(self) -> "JudgeSettings":
        if (self.chat is None) == (self.reward is None):
            raise ValueError("a judge has either 'chat' or 'reward'")
        if self.chat and self.limits.max_cost is not None and self.chat.price is None:
            raise ValueError("'limits.max_cost' needs 'chat.price', per million tokens")
        if self.reward and self.limits.tokens_per_minute is not None:
            raise ValueError(
                "a reward source counts no tokens: leave 'limits.tokens_per_minute' out, it cannot be kept"
            )
        return self


class PolicySettings(Settings):
    """An OpenAI-compatible server that may be asked for missing answers."""

    url: Url
    """With or without /v1."""
    model: str = "policy"
    max_tokens: int = Field(default=512, ge=1)
    """Of an answer."""
    temperature: float = Field(default=0.0, ge=0)
    seed: int | None = None
    api_key_variable: str = SERVICE_KEY
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _has_no_price(self) -> "PolicySettings":
        if self.limits.max_cost is not None:
            raise ValueError("a policy has no price, so 'limits.max_cost' cannot be kept; leave it out")
        return self


class JudgeServiceSettings(Settings):
    """What the judge service serves, and how much of it at once."""

    judges: dict[Name, JudgeSettings] = Field(default_factory=dict)
    default_judge: str | None = None
    """Of requests that name none; None: the first one."""
    protocols: dict[Name, str] = Field(default_factory=dict)
    """Name to template file, beside the shipped ones."""
    default_protocol: str = "alpaca"
    policies: dict[Name, PolicySettings] = Field(default_factory=dict)
    """Those that missing answers may be had of, by the name that clients use; a URL alone will do."""
    store: str = "runs/judge/store.db"
    runs: str = "runs/judge/service"
    """Folder of background runs, for one service at a time."""
    records: str = "runs/judge"
    """Folder of the records of runs that are done, where `posttrain judge show` finds them."""
    max_comparisons: int = Field(default=5000, ge=1)
    """Of one request, one for each turn that is judged and for each replicate; more are refused."""
    max_waiting_comparisons: int = Field(default=20_000, ge=1)
    """Being judged at once for requests that wait, over all of them; a request beyond gets 503 and may come again."""
    max_queued_runs: int = Field(default=100, ge=1)
    """Background runs that wait for their turn; one beyond gets 503. Each judge plays one at a time."""
    max_body_bytes: int = Field(default=64 << 20, ge=1)
    """Bytes of one request's body; more are refused with 413."""
    deadline_seconds: float = Field(default=300.0, gt=0, le=540)
    """Seconds that a request may take; then 504, and what was judged is kept."""

    @field_validator("policies", mode="before")
    @classmethod
    def _urls_are_policies(cls, policies: Any) -> Any:
        if not isinstance(policies, dict):
            return policies
        return {name: {"url": one} if isinstance(one, str) else one for name, one in policies.items()}

    @model_validator(mode="after")
    def _names_are_known(self) -> "JudgeServiceSettings":
        if self.default_judge is not None and self.default_judge not in self.judges:
            raise ValueError(
                f"default_judge '{self.default_judge}' is no judge {suggest(self.default_judge, self.judges)}"
            )
        if taken := [name for name in self.protocols if name in NAMES]:
            raise ValueError(f"the protocol '{taken[0]}' comes with the package; choose another name")
        if self.default_protocol not in (*NAMES, *self.protocols):
            known = suggest(self.default_protocol, (*NAMES, *self.protocols))
            raise ValueError(f"default_protocol '{self.default_protocol}' is no protocol {known}")
        return self


def from_environment() -> JudgeServiceSettings:
    """The settings in `POSTTRAIN_JUDGE`, the defaults where it is not set; RequestError names what is wrong in it."""
    try:
        mapping = json.loads(os.environ.get(ENVIRONMENT) or "{}")
    except ValueError:
        raise RequestError(f"{ENVIRONMENT} is not JSON; it holds the judge service's settings") from None
    return validate(JudgeServiceSettings, mapping, ENVIRONMENT)
