"""What tests of the `posttrain judge` commands share: commands as declared, judges and models to ask."""

import json
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

from posttrain.core import cli
from posttrain.llm_judge.judges.qualities import pattern
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.judges.scripted_server import Faults, ScriptedServer
from posttrain.llm_judge.protocols import NAMES, load_protocol

PACKAGE = Path(__file__).parents[1]
QUALITY = r"quality (-?\d+(?:\.\d+)?|broken)"


def declare(monkeypatch):
    """The entry points of this package's pyproject.toml, whatever is installed."""
    declared = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"][cli.GROUP]
    entries = [EntryPoint(name, value, cli.GROUP) for name, value in declared.items()]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)


def scripted(log=None, script=None, **faults):
    """A judge to whom an answer is worth, in log-odds, the number that stands in it after "quality"."""
    protocols = [load_protocol(name) for name in NAMES]
    return ScriptedServer(protocols, script or Script(), pattern(QUALITY), Faults(**faults), log)


class StubServer:
    """An OpenAI-compatible server: `reply(body)` gives the text of an answer, or a status and a message."""

    def __init__(self, reply, models=("policy",), headers=None):
        self.reply, self.models, self.headers = reply, models, headers or {}
        self.asked, self.keys = [], []

    async def __call__(self, scope, receive, send):
        key = dict(scope["headers"]).get(b"authorization", b"").decode()
        if scope["path"] == "/v1/models":
            status, answer = 200, {"data": [{"id": model} for model in self.models]}
        else:
            body = json.loads((await receive())["body"])
            self.asked.append(body)
            self.keys.append(key)
            said = self.reply(body)
            status, answer = (200, _completion(said)) if isinstance(said, str) else said
        data = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


def refusal(status, message):
    return status, {"error": {"message": message, "type": "x", "code": None}}


def _completion(text):
    finish = "length" if text.endswith("…") else "stop"
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
