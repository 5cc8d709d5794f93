"""Who is talked to: from what a person types (a URL, a checkpoint, a run) to an endpoint that answers.

A URL is used as it is, with the key that its kind of server gets. A checkpoint is served by a policy service of our
own on loopback, which ends with the chat. Knows nothing of conversations.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import httpx

from posttrain.core.errors import RequestError
from posttrain.core.files import disk_errors, user_path
from posttrain.core.supervised import SupervisedService
from posttrain.lab.models import NANO, resolve_model
from posttrain.lab.runs_command import one_run
from posttrain.llm_judge.endpoints import OUR_KEY_VARIABLE, Endpoint, find_endpoint, is_url
from posttrain.rollout.checkpoint import refuse_unservable

_FINGERPRINT = re.compile(r"[0-9a-f]{6,64}")
_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class ChatModel:
    """One model that can be asked."""

    label: str
    """What people read: `nano`, `ppo 20b8ac5e7a67`, `policy at 127.0.0.1:8001`."""
    endpoint: Endpoint


def state_folder() -> Path:
    """Where a user's programs keep what is no setting and no result: line history, logs of the chat's services."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "posttrain"


class ChatModels:
    """Context manager that opens models; the services that it started have ended when the block is left."""

    def __init__(self, runs: Path, threads: int | None = None) -> None:
        self._runs = runs
        self._threads = ["--threads", str(threads)] if threads else []
        self._stack = ExitStack()
        self._served: dict[Path, Endpoint] = {}

    def __enter__(self) -> "ChatModels":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def check(self, named: str) -> None:
        """RequestError for what cannot be a model, before anything is started."""
        if not is_url(named):
            refuse_chatless(find_checkpoint(named, self._runs)[1])

    def open(self, named: str, model: str | None = None) -> ChatModel:
        """The model called `named`; `model` chooses among those of a URL, which are several.

        RequestError for what is no model or cannot chat, WorkError where the server or the service does not answer.
        """
        if is_url(named):
            endpoint = _current(find_endpoint(named, model), model)
            return ChatModel(f"{endpoint.model} at {httpx.URL(endpoint.base_url).netloc.decode()}", endpoint)
        if model is not None:
            raise RequestError(f"--model chooses among the models of a URL; {named} is a checkpoint")
        label, folder = find_checkpoint(named, self._runs)
        if folder not in self._served:
            refuse_chatless(folder)
            log = state_folder() / "chat" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', label)}-{os.getpid()}.log"
            with disk_errors(log):
                log.parent.mkdir(parents=True, exist_ok=True)
            service = SupervisedService("policy", ["policy", str(folder), *self._threads], log)
            url = self._stack.enter_context(service).url
            self._stack.callback(log.unlink, missing_ok=True)  # it stays where the service did not start
            self._served[folder] = find_endpoint(url)
        return ChatModel(label, self._served[folder])


def _current(endpoint: Endpoint, named: str | None) -> Endpoint:
    """Of a policy service the model itself instead of the version that it has now, unless that one was named: weights
    may be pushed while somebody talks to it, and versions are served one at a time."""
    name, at, _ = endpoint.model.partition("@")
    if endpoint.key_variable != OUR_KEY_VARIABLE or not at or named == endpoint.model:
        return endpoint
    return replace(endpoint, model=name, digest=None)


def distinct(models: list[ChatModel]) -> list[ChatModel]:
    """The same models, with a number behind a label that an earlier one has as well."""
    return list(_distinct(models))


def _distinct(models: list[ChatModel]) -> Iterator[ChatModel]:
    seen: dict[str, int] = {}
    for model in models:
        count = seen[model.label] = seen.get(model.label, 0) + 1
        yield model if count == 1 else replace(model, label=f"{model.label} ({count})")


def find_checkpoint(named: str, runs: Path) -> tuple[str, Path]:
    """Label and folder of a checkpoint: `nano`, a folder, a run's folder or fingerprint, a Hub id; RequestError."""
    path = user_path(named)
    if named != NANO and path.is_dir():
        folder = (path / "checkpoint" if (path / "checkpoint").is_dir() else path).resolve()
        refuse_unservable(folder)
        return _label(folder), folder
    if _FINGERPRINT.fullmatch(named) and runs.is_dir():
        found = one_run(runs, named)
        if not found.run.checkpoint.is_dir():
            raise RequestError(f"run {found.fingerprint} ({found.stage}, {found.state}) has no checkpoint to talk to")
        refuse_unservable(found.run.checkpoint)
        return f"{found.stage} {found.fingerprint}", found.run.checkpoint.resolve()
    folder = resolve_model(named).folder.resolve()
    refuse_unservable(folder)
    return named, folder


def refuse_chatless(folder: Path) -> None:
    """RequestError for a checkpoint whose tokenizer has no chat template that the policy service could use."""
    files = (folder / "chat_template.jinja", folder / "tokenizer_config.json")
    if any(_MARKER.search(file.read_text(encoding="utf-8")) for file in files if file.is_file()):
        return
    from posttrain.data.tokenizer import load_tokenizer  # which imports transformers: seconds

    load_tokenizer(folder)


def _label(folder: Path) -> str:
    """`ppo 20b8ac5e7a67` for a run's checkpoint, the folder's own name for any other."""
    if folder.name == "checkpoint" and (folder.parent / "config.yaml").exists():
        return f"{folder.parent.parent.name} {folder.parent.name}"
    return folder.name
