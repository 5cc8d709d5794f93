"""`posttrain serve judge`: checks what it is asked to serve, then becomes the BentoML server.

What can be refused is refused here, in one line and before a server starts.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain.core.errors import RequestError
from posttrain.core.keys import warn_without_key
from posttrain.core.serving import check_address, serve_in_foreground

if TYPE_CHECKING:
    from posttrain.llm_judge.serving.settings import JudgeServiceSettings

SERVICE = "posttrain.llm_judge.service:JudgeService"
REWARD = "reward"
"""What the judge of --reward is called."""
PATHS = ("store", "runs", "records")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")


def serve_judge(
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL|URL",
            help="A model at OPENAI_BASE_URL, or the first one of the server at URL. May be repeated.",
            show_default=False,
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A reward service, as the judge 'reward'.", show_default=False),
    ] = None,
    source: Annotated[str, typer.Option(help="The source of --reward.")] = "rm",
    protocol: Annotated[str | None, typer.Option(help="Default protocol, else alpaca.", show_default=False)] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="A server that may be asked for missing answers, by this name. May be repeated.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Of judgements, else runs/judge/store.db.", show_default=False)
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML with any settings; options come on top.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of any setting, e.g. judges.NAME.limits.max_cost=5.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback it needs POSTTRAIN_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8003,
) -> None:
    """Serve a pairwise judge over HTTP: POST /judge answers when it is done, POST /runs judges in the background."""
    from posttrain.core.config import apply_overrides, read_yaml, validate
    from posttrain.llm_judge.serving.settings import ENVIRONMENT, JudgeServiceSettings

    mapping = read_yaml(settings) if settings else {}
    judges = {**(mapping.get("judges") or {}), **parse_judges(judge or [])}
    if reward:
        judges[REWARD] = {"reward": {"url": reward, "source": source}}
    mapping["judges"] = judges
    mapping["policies"] = {**(mapping.get("policies") or {}), **parse_policies(policy or [])}
    mapping |= {"default_protocol": protocol} if protocol else {}
    mapping |= {"store": str(store)} if store else {}
    wanted = _located(validate(JudgeServiceSettings, apply_overrides(mapping, overrides or []), "serve judge"))
    check_address(host, port)
    check_settings(wanted)
    warn_without_key(host)
    print(f"judge service on http://{host}:{port}: {', '.join(wanted.judges)}", file=sys.stderr)
    environment = {ENVIRONMENT: wanted.model_dump_json()}
    serve_in_foreground(SERVICE, host=host, port=port, environment=environment, extra="posttrain-llm-judge[service]")


def parse_judges(given: list[str]) -> dict[str, Any]:
    """The settings of the judges that `--judge` names: `[NAME=]MODEL` or `[NAME=]URL`, called by the model where they
    have no name, with `-` for what no name holds and for dots, at which --set would part it. RequestError for one that
    is given twice, and for a server that is not there."""
    from posttrain.llm_judge.endpoints import find_endpoint, is_url

    judges: dict[str, Any] = {}
    for text in given:
        named = None if is_url(text) else _NAMED.fullmatch(text)
        name, what = named.groups() if named else (None, text)
        chat: dict[str, Any] = {"model": what}
        if is_url(what):
            found = find_endpoint(what)
            chat = {
                "model": found.model,
                "base_url": found.base_url,
                "api_key_variable": found.key_variable if found.api_key else None,
                "sha256": found.digest,
            }
        name = name or _default_name(chat["model"])
        if name in judges:
            raise RequestError(f"judge '{name}' is given twice; choose another name (NAME={what})")
        judges[name] = {"chat": chat}
    return judges


def _default_name(model: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_:/-]+", "-", model).strip("-_:/")[:100]
    if not name:
        raise RequestError(f"the model '{model}' makes no name for a judge; choose one (NAME={model})")
    return name


def parse_policies(given: list[str]) -> dict[str, str]:
    """The `NAME=URL` of `--policy`; RequestError for a malformed or repeated one."""
    policies: dict[str, str] = {}
    for text in given:
        named = _NAMED.fullmatch(text)
        if named is None:
            raise RequestError(f"--policy takes NAME=URL, not '{text}'")
        name, url = named.groups()
        if name in policies:
            raise RequestError(f"policy '{name}' is given twice; choose another name")
        policies[name] = url
    return policies


def check_settings(settings: "JudgeServiceSettings") -> None:
    """RequestError or WorkError for the first thing that cannot be served: no judge, a missing key, a template that is
    none, a folder of runs that another service has, a store that is none."""
    from posttrain.llm_judge.serving.judges import Judges
    from posttrain.llm_judge.serving.policies import Policies
    from posttrain.llm_judge.serving.run_files import lock_runs
    from posttrain.llm_judge.serving.wanted import Catalog
    from posttrain.llm_judge.store import Store

    if not settings.judges:
        raise RequestError("there is no judge to serve; name one with --judge MODEL, --judge URL or --reward URL")
    Catalog(settings)
    Judges(settings.judges)
    Policies(settings.policies)
    lock_runs(Path(settings.runs)).release()
    Store(Path(settings.store)).close()


def _located(settings: "JudgeServiceSettings") -> "JudgeServiceSettings":
    """With every path as seen from here: BentoML may work elsewhere."""
    paths: dict[str, Any] = {name: str(Path(getattr(settings, name)).absolute()) for name in PATHS}
    protocols = {name: str(Path(where).absolute()) for name, where in settings.protocols.items()}
    return settings.model_copy(update={**paths, "protocols": protocols})
