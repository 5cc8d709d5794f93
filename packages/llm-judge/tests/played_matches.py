"""Matches that tests make up, with the labels that a chat model is said to have given."""

from types import SimpleNamespace

from posttrain.llm_judge.comparisons import Comparison
from posttrain.llm_judge.judgements import Decision, Judgement, judgement_key
from posttrain.llm_judge.matches import Match, Played
from posttrain.llm_judge.records import Side
from posttrain.llm_judge.running.progress import Estimate, Tally
from posttrain.llm_judge.running.runner import Failure, Report

SIDES = Side("old", "file", "old.jsonl"), Side("new", "given")


def judge(protocol):
    request = {"model": "teacher", "max_tokens": 4}
    return SimpleNamespace(identity={"judge": "chat", "request": request, "protocol": protocol.identity})


def compared(number, turns=1, a="of A", b="of B", **more):
    asked = [f"question {number}, turn {turn}" for turn in range(1, turns + 1)]
    answers = {"answers_a": [f"{a} {number}"] * turns, "answers_b": [f"{b} {number}"] * turns}
    return Comparison(questions=asked, generator_a="old", generator_b="new", **answers, **more)


def played(protocol, comparisons, labels, **report):
    """A match whose games got these labels, in their order; None: no verdict, "": no answer."""
    match = Match(comparisons, protocol)
    judgements = [_judgement(protocol, game, label) for game, label in zip(match.games(), labels, strict=True)]
    judged = [(said, game) for said, game in zip(judgements, match.games(), strict=True) if said]
    tally = Tally(total=len(labels), asked=len(judged), prompt_tokens=7, completion_tokens=3, cost=0.25)
    failures = [Failure(game, "it broke") for said, game in zip(judgements, match.games(), strict=True) if not said]
    told = Report(judgements, failures, report.pop("ended", "done"), Estimate(0, 0, 0, 0, 0, 0.0), tally, 2.5)
    return Played(match, judged, told, **report)


def _judgement(protocol, game, label):
    if label == "":
        return None
    value = None if label is None else protocol.template.scale[label]
    identity = judge(protocol).identity
    decision = Decision(label, value, f"I say {label}.", 100, 2, 0.5)
    return Judgement(judgement_key(identity, game), identity, game.order, decision, created=1.0)
