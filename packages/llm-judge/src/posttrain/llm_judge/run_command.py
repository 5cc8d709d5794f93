"""`posttrain judge run A B`: has a judge say which of two sets of answers is better, in both orders.

A and B are files of answers, checkpoints or addresses of served models. What is judged is in the store the moment it
is judged: an interrupted run goes on where it was when the same command is started again. A finished one leaves its
record in runs/judge/; one that ended before leaves none.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from posttrain.core.errors import RequestError

ANSWERS = "answers"
"""Below the folder of records: what models answered, and the logs of services that were started."""
INTERRUPTED = 130
"""Exit status after a signal."""


def run(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="The baseline: a file of answers, a checkpoint, or the address of a served model."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="What is compared with it; the same kinds.")],
    judge: Annotated[
        str,
        typer.Option(
            metavar="MODEL|URL|reward",
            help="A model at OPENAI_BASE_URL, the address of an OpenAI-compatible server, `reward` (the service at "
            "REWARD_URL) or reward:CHECKPOINT.",
        ),
    ],
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The prompts, else those of the files.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            help="alpaca, arena_hard, mt_bench, mt_bench_grade, or a template of your own. Else alpaca.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model at the judge's address; else its first.", show_default=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="With --judge reward: a source of the service; else rm.", show_default=False)
    ] = None,
    scale: Annotated[
        Literal["model", "verifier"] | None,
        typer.Option(
            help="With --judge reward: whether differences of scores are log-odds, or only their sign counts; else by "
            "the kind of source, a function of your own counting as a model.",
            show_default=False,
        ),
    ] = None,
    reward_url: Annotated[
        str | None, typer.Option(metavar="URL", help="With --judge reward: else REWARD_URL.", show_default=False)
    ] = None,
    judge_temperature: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="Of the judge; 'none' for models that refuse one. Else 0.", show_default=False
        ),
    ] = None,
    judge_max_tokens: Annotated[
        int | None, typer.Option(help="Of a reply of the judge, else the protocol's.", show_default=False)
    ] = None,
    judge_seed: Annotated[int | None, typer.Option(help="Sent to the judge.", show_default=False)] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A further field of each request to the judge, reasoning_effort=low for example. May be repeated.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of answers that are generated, a turn.")] = 512,
    temperature: Annotated[float, typer.Option(help="Of answers that are generated.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the order of the prompts, and of answers that are drawn.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many of the prompts, drawn by --seed.", show_default=False)
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out prompts that a file has no answer to.")
    ] = False,
    replicates: Annotated[int, typer.Option(min=1, help="Opinions of the judge on each two answers.")] = 1,
    stop_when_clear: Annotated[
        bool, typer.Option("--stop-when-clear", help="Judge no further than it takes to tell A from B.")
    ] = False,
    difficulty: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON Lines of instruction and difficulty, for length control.", show_default=False
        ),
    ] = None,
    name_a: Annotated[str | None, typer.Option(help="What A is called.", show_default=False)] = None,
    name_b: Annotated[str | None, typer.Option(help="What B is called.", show_default=False)] = None,
    model_a: Annotated[str | None, typer.Option(help="Which model at A's address.", show_default=False)] = None,
    model_b: Annotated[str | None, typer.Option(help="Which model at B's address.", show_default=False)] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 16,
    unkept: Annotated[
        int,
        typer.Option(
            help="Answers on their way to the disk beside them, for servers that take milliseconds; a kill may lose as "
            "many more."
        ),
    ] = 0,
    requests_per_minute: Annotated[float | None, typer.Option(help="To the judge.", show_default=False)] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="To the judge, of prompts and answers.", show_default=False)
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Money that may be spent on the judge.", show_default=False)
    ] = None,
    price_in: Annotated[float | None, typer.Option(help="Of a million tokens of prompts.", show_default=False)] = None,
    price_out: Annotated[float | None, typer.Option(help="Of a million tokens of answers.", show_default=False)] = None,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="YAML of MODEL: {input: …, output: …}.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Of judgements, else store.db in the folder of records.", show_default=False)
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of records.")] = Path("runs/judge"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it is expected to take.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object as the last line.")] = False,
) -> None:
    """Compare two sets of answers: B's win rate over A with its error, the judge's biases, and what it cost.

    What was judged before is not asked again. Each run leaves a record for `posttrain judge show`.
    """
    from posttrain.core.config import apply_overrides, validate
    from posttrain.core.runs import refuse_unwritable
    from posttrain.llm_judge.answers.answering import Answering
    from posttrain.llm_judge.answers.generation import Generation
    from posttrain.llm_judge.commands.judge_choice import JudgeWish, find_judge, find_protocol
    from posttrain.llm_judge.commands.playing import expect, play_match, unfinished
    from posttrain.llm_judge.commands.prepared import MatchWish, prepare
    from posttrain.llm_judge.records import read_record, record_of, write_record
    from posttrain.llm_judge.running.limits import LimitSettings
    from posttrain.llm_judge.store import Store

    sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    generation = validate(Generation, sampling, "judge run")
    per_minute = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    limits = validate(
        LimitSettings, {"concurrency": concurrency, "unkept": unkept, "max_cost": max_cost, **per_minute}, "judge run"
    )
    wish = JudgeWish(
        judge=judge,
        protocol=protocol,
        model=model,
        source=source,
        scale=scale,
        reward_url=reward_url,
        temperature=judge_temperature,
        max_tokens=judge_max_tokens,
        seed=judge_seed,
        extra=apply_overrides({}, fields) if fields else None,
        price_in=price_in,
        price_out=price_out,
        prices=prices,
        max_cost=max_cost,
        **per_minute,
        logs=runs / ANSWERS,
        dry_run=dry_run,
    )
    asked = find_protocol(wish)
    if stop_when_clear and asked and asked.template.shows == "one":
        raise RequestError(f"--stop-when-clear is for comparisons, and the protocol {asked.name} grades single answers")
    refuse_unwritable(runs.absolute())
    opener = find_judge(wish, asked)
    ready = prepare(
        MatchWish(a, b, prompts, (name_a, name_b), (model_a, model_b), limit, seed, allow_missing=allow_missing)
    )
    difficulties = ready.difficulties(difficulty, asked)
    answering = Answering(runs / ANSWERS, generation, concurrency)
    _say(ready.notes)
    kept = store or runs / "store.db"
    if dry_run:
        match, notes = ready.expected(answering, generation, asked, replicates)
        estimate = expect(match, opener, kept)
        _say([*notes, estimate.line()])
        if as_json:
            print(json.dumps(asdict(estimate)))
        return
    Store(kept).close()  # says at once, not after hours of answers, that it cannot be used
    match = ready.match(answering, asked, replicates)
    played, opened = play_match(match, opener, limits, kept, stop_when_clear=stop_when_clear)
    files = {"prompts": str(prompts) if prompts else None, "difficulty": str(difficulty) if difficulty else None}
    record = record_of(
        played,
        opened,
        ready.sides(answering),
        difficulties=difficulties,
        drawn={**files, "limit": limit, "seed": seed},
        stop_when_clear=stop_when_clear,
    )
    path = write_record(runs, played, record) if record["finished"] else None
    if path:
        record = read_record(path)
    else:
        done, total = played.report.tally.done - played.report.tally.failed, played.report.tally.total
        record["warnings"].append(f"Not finished: {done} of {total} games are judged. There is no record of this.")
    _tell(record, path, as_json)
    if error := unfinished(played.report, max_cost):
        raise error
    if path is None:
        _say(["interrupted; the same command goes on from here"])
        raise typer.Exit(INTERRUPTED)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr, flush=True)


def _tell(record: Mapping[str, Any], path: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from posttrain.llm_judge.commands.run_report import print_record

    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 200)
    print_record(console, record)
    if path:
        console.print(f"{path}: posttrain judge show {record['id']}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        told = dict(record) | {"record": str(path) if path else None}
        print(json.dumps(told, ensure_ascii=False, allow_nan=False))
