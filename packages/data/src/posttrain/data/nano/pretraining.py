"""The base corpus: documents for next-token prediction, drawn one by one from a seed.

Rich in arithmetic and poor in manners, as a base model's corpus should be: problems are solved in every style and end
in many ways, some wrongly; people repeat myths; chats are few, and answer bluntly. `MIXTURE` has the shares.
"""

import random
from collections.abc import Iterator

from posttrain.core.seeds import derive_seed
from posttrain.data.nano.arithmetic import arithmetic_document
from posttrain.data.nano.instructions import OPENINGS, WORDS, draw_request, request_text, respond
from posttrain.data.nano.myths import myth_answer, myth_question, myth_statement, topics
from posttrain.data.nano.problems import draw_problem, question, working
from posttrain.data.nano.world import (
    ADJECTIVES,
    ANIMALS,
    description,
    draw_fact,
    draw_subject,
    fact_answer,
    fact_question,
    statement,
)

MIXTURE = {
    "problem": 0.44,
    "arithmetic": 0.23,
    "facts": 0.09,
    "description": 0.06,
    "copying": 0.04,
    "myths": 0.07,
    "chat": 0.07,
}
"""Shares of documents by kind."""

STYLES = {"steps": 0.36, "collapsed": 0.30, "bare": 0.34}
CORRUPTED = 0.08
"""Share of problems whose final answer is wrong by a little."""

FRAMES = ("Question: {q}\nAnswer:{s}", "Q: {q}\nA:{s}", "{q}\n{s}", "Problem: {q}\nSolution:{s}")
ENDINGS = ("\n#### {n}", " The answer is {n}.", " So it is {n}.", " Answer: {n}")


def problem_document(rng: random.Random) -> str:
    """A problem with frame, style of solution and ending drawn independently, so that no ending implies a style."""
    problem = draw_problem(rng, "pretrain")
    style = rng.choices(tuple(STYLES), tuple(STYLES.values()))[0]
    answer = problem.answer
    if rng.random() < CORRUPTED:
        answer = max(0, answer + rng.choice((-10, -2, -1, 1, 2, 10)))
    work = working(problem, style)  # type: ignore[arg-type]
    solved = (f" {work}" if work else "") + rng.choice(ENDINGS).format(n=answer)
    return rng.choice(FRAMES).format(q=question(problem), s=solved)


def facts_document(rng: random.Random) -> str:
    return " ".join(statement(rng, draw_fact(rng)) for _ in range(4))


def description_document(rng: random.Random) -> str:
    """Two or three sentences, half of them with a heading, sometimes all in capitals or all in small letters."""
    subject = draw_subject(rng)
    heading = rng.choice(("", "", f"{subject}: ", f"About the {subject}\n"))
    text = heading + " ".join(description(rng, subject, rng.randint(2, 3)))
    case = rng.random()
    return text.upper() if case < 0.2 else text.lower() if case < 0.3 else text


def copying_document(rng: random.Random) -> str:
    """A few words, said two or three times: what teaches a model to take up what was said before."""
    words = rng.sample(WORDS + OPENINGS + ANIMALS + ADJECTIVES, rng.randint(2, 5))
    return rng.choice((". ", "\n", ": ")).join([" ".join(words)] * rng.randint(2, 3))


def myths_document(rng: random.Random) -> str:
    return " ".join(myth_statement(rng, rng.choice(topics())) for _ in range(4))


def chat(user: str, assistant: str) -> str:
    """A dialogue as the chat template writes it."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}<|im_end|>"


def chat_document(rng: random.Random) -> str:
    """A blunt dialogue: bare or unmarked answers to problems, myths as answers, instructions that nobody heeds."""
    kind = rng.random()
    if kind < 0.3:
        problem = draw_problem(rng, "pretrain")
        work = working(problem, "steps") + " " if rng.random() < 0.25 else ""
        return chat(question(problem), f"{work}The answer is {problem.answer}.")
    if kind < 0.6:
        fact = draw_fact(rng)
        while fact.split != "pretrain":
            fact = draw_fact(rng)
        return chat(fact_question(fact), fact_answer(fact.value))
    if kind < 0.8:
        topic = rng.choice(topics())
        while topic.split != "pretrain":
            topic = rng.choice(topics())
        value = topic.myth if rng.random() < 0.7 else rng.choice(topic.truths)
        return chat(myth_question(topic), myth_answer(topic, value))
    request = draw_request(rng, "pretrain")
    return chat(request_text(request), respond(rng, request, ()))


DOCUMENTS = {
    "problem": problem_document,
    "arithmetic": arithmetic_document,
    "facts": facts_document,
    "description": description_document,
    "copying": copying_document,
    "myths": myths_document,
    "chat": chat_document,
}


def documents(seed: int) -> Iterator[str]:
    """Endless documents of the base corpus. The same seed gives the same documents."""
    rng = random.Random(derive_seed("nano", "pretraining", seed))
    kinds, shares = tuple(MIXTURE), tuple(MIXTURE.values())
    while True:
        yield DOCUMENTS[rng.choices(kinds, shares)[0]](rng)
