"""A request that fits this service: its judge, its protocol and who is on each side, by the settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal

from posttrain.core.errors import RequestError, suggest
from posttrain.core.hashing import digest_json
from posttrain.llm_judge.protocols import NAMES, Protocol, load_protocol
from posttrain.llm_judge.serving.requests import FromPolicy, JudgeRequest, RequestT
from posttrain.llm_judge.serving.settings import JudgeServiceSettings

if TYPE_CHECKING:
    from posttrain.llm_judge.records import Side, Sides

NAME_SHOWN = 80
"""Characters of an unknown name that an error repeats."""


@dataclass(frozen=True)
class Wanted(Generic[RequestT]):
    """What a request comes to."""

    request: RequestT
    judge: str
    protocol_name: str | None
    protocol: Protocol | None
    """None: the judge needs none."""
    sides: "Sides"

    def digest(self, identity: Mapping[str, Any]) -> str:
        """Sixteen hex digits of the request and the judge's identity: what equal requests to an equal judge share."""
        asked = self.request.model_dump(mode="json", exclude={"judge", "protocol"}, exclude_defaults=True)
        return digest_json([self.judge, dict(identity), asked])[:16]


class Catalog:
    """The names that requests may use. RequestError, when it is made, for a protocol that cannot be loaded."""

    def __init__(self, settings: JudgeServiceSettings) -> None:
        self._settings = settings
        shipped = {name: load_protocol(name) for name in NAMES}
        self.protocols = shipped | {name: load_protocol(where) for name, where in settings.protocols.items()}

    @property
    def default_judge(self) -> str | None:
        """None: there is no judge."""
        return self._settings.default_judge or next(iter(self._settings.judges), None)

    def resolve(self, request: RequestT) -> Wanted[RequestT]:
        """RequestError for a name that the settings do not have, or more comparisons than they allow."""
        settings = self._settings
        judge = request.judge or self.default_judge
        if judge is None:
            raise RequestError("this service has no judge; its settings name none")
        _check("judge", judge, settings.judges)
        name = self._protocol_name(request, judge)
        protocol = self.protocols[name] if name else None
        self._check_size(request, protocol)
        for index, item in enumerate(request.comparisons):
            for side, output in (("output_1", item.output_1), ("output_2", item.output_2)):
                if isinstance(output, FromPolicy):
                    _check(f"comparisons[{index}].{side}.policy", output.policy, settings.policies)
        sides = _side(request, 1), _side(request, 2)
        return Wanted(request, judge, name, protocol, sides)

    def _check_size(self, request: JudgeRequest, protocol: Protocol | None) -> None:
        most, count = self._settings.max_comparisons, len(request.comparisons)
        each_turn = protocol is not None and protocol.template.turns == "each"
        turns = sum(len(item.asked) for item in request.comparisons) if each_turn else count
        if (asked := turns * request.replicates) > most:
            more = f", {asked} with their turns and replicates," if asked != count else ""
            raise RequestError(f"{count} comparisons{more} are more than the {most} of one request; split it")

    def _protocol_name(self, request: JudgeRequest, judge: str) -> str | None:
        if self._settings.judges[judge].reward:
            if request.protocol is not None:
                raise RequestError(f"judge '{judge}' scores answers, and takes no protocol; leave 'protocol' out")
            return None
        name = request.protocol or self._settings.default_protocol
        _check("protocol", name, self.protocols)
        return name


def _check(where: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise RequestError(
            f"{where}: '{name[:NAME_SHOWN]}' is none of this service's {suggest(name[:NAME_SHOWN], known)}"
        )


def _side(request: JudgeRequest, number: Literal[1, 2]) -> "Side":
    """Who answered: as the request calls them, else the policy that is asked for every answer."""
    # The statistics behind records take a second to import, and a command that checks its settings needs none.
    from posttrain.llm_judge.records import Side

    outputs = [item.output_1 if number == 1 else item.output_2 for item in request.comparisons]
    policies = {output.policy for output in outputs if isinstance(output, FromPolicy)}
    all_of_one = len(policies) == 1 and all(isinstance(output, FromPolicy) for output in outputs)
    named = request.generator_1 if number == 1 else request.generator_2
    name = named or (next(iter(policies)) if all_of_one else f"output_{number}")
    return Side(name, "url" if all_of_one else "given")
