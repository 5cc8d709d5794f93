"""OpenAI-compatible servers by their address: which models they serve, and with which key they are asked.

A posttrain service says what it is in each response, and gets POSTTRAIN_API_KEY; any other server gets OPENAI_API_KEY.
So neither key goes to a server of the other kind, and none to a server that does not ask for it, unless the environment
names it beside the key. OPENAI_API_KEY does not leave this machine without encryption. Either may lie in a file, which
POSTTRAIN_API_KEY_FILE or OPENAI_API_KEY_FILE names.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from posttrain.core.clients import ServiceUnavailable, error_message
from posttrain.core.errors import ContractError, RequestError, WorkError, suggest
from posttrain.core.keys import SERVICE_KEY, read_key
from posttrain.core.serving import is_loopback
from posttrain.core.wire import CONTRACT, CONTRACT_HEADER

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
OUR_KEY_VARIABLE = SERVICE_KEY
TIMEOUT = 20.0
"""Seconds to list the models."""


@dataclass(frozen=True)
class Endpoint:
    """One model at one server."""

    base_url: str
    """With /v1, or whatever stands in its place."""
    model: str
    api_key: str | None = field(repr=False)
    """None: the server asks for none."""
    digest: str | None
    """Of the weights, where the server tells it."""
    key_variable: str
    """The environment variable that holds the key of servers of this kind."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its answers from those of other models."""
        return {"url": self.base_url, "model": self.model, "sha256": self.digest}


def is_url(text: str) -> bool:
    """Whether an argument is meant as an address."""
    return text.startswith(("http://", "https://"))


def check_plain(url: str, what: str = "the address") -> None:
    """RequestError, which does not repeat it, for an address that may hold a secret: addresses are told in errors and
    kept in records."""
    if any(mark in url for mark in "@?#"):
        raise RequestError(
            f"{what} has a user, a query or a fragment ('@', '?', '#'); leave that out, and put the key into "
            f"{KEY_VARIABLE}, or {OUR_KEY_VARIABLE} for a posttrain service"
        )


def base_url(url: str) -> str:
    """The address with /v1 where it has no path of its own; RequestError where it is none, or holds more."""
    check_plain(url)
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RequestError(f"the address '{url}' is not a URL: {error}") from None
    if not parsed.host:
        raise RequestError(f"the address '{url}' has no host")
    plain = url.rstrip("/")
    return plain if parsed.path.strip("/") else f"{plain}/v1"


def find_endpoint(url: str, model: str | None = None) -> Endpoint:
    """`model`, or the first one, of the server at `url`.

    RequestError where it has no such model, does not take the key, or may not get it; ServiceUnavailable where nobody
    answers.
    """
    base = base_url(url)
    response = _models(base, None)
    ours = _speaks_our_contract(response, base)
    variable = OUR_KEY_VARIABLE if ours else KEY_VARIABLE
    known = read_key(variable)
    key = known if not ours and is_the_environments(base) else None
    if response.status_code in (401, 403) and known:
        if not (ours or key or _is_safe(base)):
            raise RequestError(
                f"{base} asks for a key, and {variable} would travel unencrypted; use https, or set {URL_VARIABLE} to "
                "this address to have it sent all the same"
            )
        key = known
        response = _models(base, key)
    if response.status_code in (401, 403):
        to_do = f"set {variable} to a valid key"
        raise RequestError(f"{base} does not take the key (status {response.status_code}); {to_do}")
    if response.status_code == 404 and model:  # not every server lists what it has
        return Endpoint(base, model, key, None, variable)
    if response.status_code != 200:
        raise WorkError(f"{base} does not list its models (status {response.status_code}): {error_message(response)}")
    served = _listed(response, base)
    names = {name: entry for entry in served for name in (entry.get("root"), entry["id"]) if name}
    if model is not None and model not in names:
        raise RequestError(f"{base} serves no model '{model}' {suggest(model, [entry['id'] for entry in served])}")
    chosen = names[model] if model is not None else served[0]
    digest = chosen["sha256"] if isinstance(chosen.get("sha256"), str) else None
    return Endpoint(base, str(chosen["id"]), key, digest, variable)


def is_the_environments(base: str) -> bool:
    """Whether the environment names this address beside the key, which is to be sent there then without being asked
    for."""
    named = os.environ.get(URL_VARIABLE)
    return named is not None and named.rstrip("/") == base


def _is_safe(base: str) -> bool:
    return base.startswith("https://") or is_loopback(httpx.URL(base).host)


def _models(base: str, key: str | None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # A proxy of the environment is for the world outside, not for this machine.
    outside = not is_loopback(httpx.URL(base).host)
    try:
        return httpx.get(f"{base}/models", headers=headers, timeout=TIMEOUT, trust_env=outside)
    except httpx.TransportError as error:
        raise ServiceUnavailable(
            f"{base} does not answer ({type(error).__name__}: {error}); is the server running?"
        ) from None


def _speaks_our_contract(response: httpx.Response, base: str) -> bool:
    spoken = response.headers.get(CONTRACT_HEADER)
    if spoken is not None and spoken != str(CONTRACT):
        raise ContractError(
            f"{base} speaks contract {spoken[:20]}, this client {CONTRACT}; install matching versions of both"
        )
    return spoken is not None


def _listed(response: httpx.Response, base: str) -> list[Mapping[str, Any]]:
    try:
        served = response.json()["data"]
        found = [entry for entry in served if isinstance(entry["id"], str)]
    except (ValueError, LookupError, TypeError):
        raise WorkError(f"{base}/models is no list of models; is this an OpenAI-compatible server?") from None
    if not found:
        raise RequestError(f"{base} serves no model; name one that it knows")
    return found
