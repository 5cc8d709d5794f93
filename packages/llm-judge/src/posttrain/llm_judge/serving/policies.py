"""Missing answers from the policies that the settings allow, by their names and at no other address."""

from collections.abc import Mapping

from posttrain.core.errors import PosttrainError
from posttrain.core.keys import read_key
from posttrain.core.wire import Message
from posttrain.llm_judge.endpoints import base_url
from posttrain.llm_judge.judges.completions import ChatServer, estimated_tokens
from posttrain.llm_judge.running.limits import Limits
from posttrain.llm_judge.serving.discreet import discreet
from posttrain.llm_judge.serving.requests import ComparisonItem, Generated
from posttrain.llm_judge.serving.settings import PolicySettings


class Policies:
    """To be used in one event loop."""

    def __init__(self, settings: Mapping[str, PolicySettings]) -> None:
        self.settings = settings
        self._servers = {name: _server(one) for name, one in settings.items()}

    async def answer(self, name: str, item: ComparisonItem) -> Generated:
        """The policy's answer to each question of a comparison, its own answers before it. A WorkError that names the
        policy where it gives none."""
        settings, server = self.settings[name], self._servers[name]
        body = {"model": settings.model, "max_tokens": settings.max_tokens, "temperature": settings.temperature}
        if settings.seed is not None:
            body["seed"] = settings.seed
        said, texts, cut = list[Message](item.history), list[str](), False
        for question in item.asked:
            said.append(Message(role="user", content=question))
            messages = [message.model_dump() for message in said]
            tokens = sum(estimated_tokens(message.content) for message in said)
            try:
                completion = await server.complete(body | {"messages": messages}, tokens, settings.max_tokens)
            except PosttrainError as error:
                raise discreet(error, f"policy '{name}'") from None
            texts.append(completion.text)
            said.append(Message(role="assistant", content=completion.text))
            cut = completion.cut
        return Generated(texts=texts, cut=cut)

    async def aclose(self) -> None:
        """Ends the connections."""
        for server in self._servers.values():
            await server.aclose()


def _server(settings: PolicySettings) -> ChatServer:
    # Never the key of the judge's server, which is what stands in where none is given.
    key = read_key(settings.api_key_variable) or "none"
    return ChatServer(Limits(settings.limits), base_url=base_url(settings.url), api_key=key)
