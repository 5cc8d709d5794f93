"""The real policy service in this process, behind the client that trainers use: what the tests of pushes share."""

import json
from contextlib import contextmanager
from dataclasses import replace

from starlette.testclient import TestClient

from posttrain.core.clients import PolicyClient
from posttrain.rollout.app import create_app, serve
from posttrain.rollout.policy import Policy
from posttrain.rollout.settings import PolicyServiceSettings


class ServedPolicy(PolicyClient):
    """A client whose requests go to an application in this process; notes what was pushed. Every completion counts as
    ended, or a random model's would all have the reward of those that were cut."""

    def __init__(self, checkpoint):
        super().__init__("http://testserver", patience=2.0)
        self.checkpoint, self.pushed = checkpoint, []
        self.app = create_app()
        self.start()
        self._http.close()
        self._http = TestClient(self.app)

    def start(self):
        """Serves the checkpoint's weights as version 0, as after a restart."""
        if hasattr(self.app.state, "policy"):
            self.app.state.policy.close()
        serve(self.app, Policy.load(PolicyServiceSettings(checkpoint=str(self.checkpoint))))

    def complete(self, prompts, **options):
        choices = super().complete(prompts, **options)
        return [[replace(choice, finish_reason="stop") for choice in group] for group in choices]

    def push(self, version, weights):
        data = weights.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        self.pushed.append({name: entry for name, entry in header.items() if name != "__metadata__"})
        return super().push(version, weights)


@contextmanager
def served(checkpoint):
    """A service of this checkpoint while the block lasts."""
    client = ServedPolicy(checkpoint)
    try:
        yield client
    finally:
        client.app.state.policy.close()
        client.close()
