"""Data by name: a recipe's `Source` to the rows that a trainer takes.

    load_conversations   demonstrations      load_pairs      preferences
    load_rankings        K-wise preferences  load_prompts    prompts with what their verifier needs

All rows are put in an order that derives from the seed, then the first `rows` are taken: a smaller selection is the
beginning of a larger one, and whoever only looks takes `at_most` so many. The same source and seed give the same rows
in the same order everywhere. Only the rows that are taken are held in memory. `describe_source` says what defines them,
for the config hash. Nothing is tokenised here.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from posttrain.core.errors import RequestError
from posttrain.data import generated
from posttrain.data.formats import Format, Record, UnusableRow, find_format, gives
from posttrain.data.formats.places import matches
from posttrain.data.origins import HubDataset, LocalFiles, locate
from posttrain.data.rows import Conversation, Message, Pair, Prompt, Ranking
from posttrain.data.selection import shard, shuffled, shuffled_stream
from posttrain.data.source import NANO, STREAM_BUFFER, Source

__all__ = ["NANO", "Source", "describe_source", "load_conversations", "load_pairs", "load_prompts", "load_rankings"]

Row = TypeVar("Row")

_logger = logging.getLogger(__name__)


def load_conversations(source: Source, seed: int, at_most: int | None = None) -> list[Conversation]:
    """Demonstrations that end with the assistant's message."""
    if source.path == NANO:
        return _select(generated.conversations(source.split), source, seed, at_most)

    def make(format_: Format, record: Record, row_id: str) -> Conversation:
        assert format_.conversation is not None
        return {"id": row_id, "messages": _with_system(format_.conversation(record), source)}

    return _load(source, seed, "conversation", make, at_most)


def load_pairs(source: Source, seed: int, at_most: int | None = None) -> list[Pair]:
    """Preferences. Rows without a preference (identical answers, other prompts) are left out and counted on the log."""
    if source.path == NANO:
        raise RequestError(
            "nano has no preference pairs to load: the stage 'preferences' samples them from the SFT policy; "
            "leave data.pairs out of the recipe"
        )

    def make(format_: Format, record: Record, row_id: str) -> Pair:
        assert format_.pair is not None
        prompt, chosen, rejected = format_.pair(record)
        if chosen == rejected:
            raise UnusableRow("identical answers")
        cut = format_.interrupted(record) if format_.interrupted else (False, False)
        return {
            "id": row_id,
            "prompt": _with_system(prompt, source),
            "chosen": [_answer(chosen, cut[0])],
            "rejected": [_answer(rejected, cut[1])],
            "kind": _kind(format_, record),
        }

    return _load(source, seed, "pair", make, at_most)


def load_rankings(source: Source, seed: int, at_most: int | None = None) -> list[Ranking]:
    """K answers a prompt, best first. Rows with equal answers or fewer than two are left out and counted on the log."""
    if source.path == NANO:
        raise RequestError("nano has no rankings to load; its preferences are sampled from the SFT policy")

    def make(format_: Format, record: Record, row_id: str) -> Ranking:
        assert format_.ranking is not None
        prompt, completions = format_.ranking(record)
        if len(set(completions)) < len(completions):
            raise UnusableRow("identical answers")
        messages = _with_system(prompt, source)
        return {"id": row_id, "prompt": messages, "completions": completions, "kind": _kind(format_, record)}

    return _load(source, seed, "ranking", make, at_most)


def load_prompts(source: Source, seed: int, at_most: int | None = None) -> list[Prompt]:
    """Prompts, each with the reference that its verifier needs."""
    if source.path == NANO:
        return _select(generated.prompts(source.split), source, seed, at_most)

    def make(format_: Format, record: Record, row_id: str) -> Prompt:
        assert format_.prompt is not None
        prompt, reference = format_.prompt(record)
        messages = _with_system(prompt, source)
        return {"id": row_id, "prompt": messages, "reference": reference, "kind": _kind(format_, record)}

    return _load(source, seed, "prompt", make, at_most)


def describe_source(source: Source) -> dict[str, Any]:
    """What defines a source's rows, as JSON for the config hash: content by digest or commit, and the row selection.

    A local file's folder is not part of it, so that moving a file does not make another experiment. The seed of the
    selection is the run's, which the fingerprint holds.
    """
    if source.path == NANO:
        return {
            "path": NANO,
            "split": source.split,
            "rows": source.rows,
            "skip": source.skip,
            "generator": generated.version(),
            **source.selection(),
        }
    format_ = find_format(source.path, source.format)
    origin = _locate(source, format_)
    return {
        "path": origin.dataset,
        "config": _config(source, format_),
        "split": source.split,
        **origin.definition(),
        "rows": source.rows,
        "skip": source.skip,
        "format": f"{format_.name}@{format_.version}",
        "columns": format_.described_columns(source.columns),
        **source.selection(),
    }


def _config(source: Source, format_: Format) -> str | None:
    return source.config or (format_.default_config if source.path in format_.hub_ids else None)


def _locate(source: Source, format_: Format) -> LocalFiles | HubDataset:
    config = _config(source, format_)
    return locate(
        source.path, config, source.split, source.revision, format_.config_is_folder, format_.files_are_one_split
    )


def _load(
    source: Source, seed: int, wanted: str, make: Callable[[Format, Record, str], Row], at_most: int | None
) -> list[Row]:
    format_ = find_format(source.path, source.format)
    if getattr(format_, wanted) is None:
        raise RequestError(
            f"dataset {source.path} in format '{format_.name}' holds no {wanted}s "
            f"(it gives {', '.join(gives(format_))}); set format to the one that it has, or take another dataset"
        )
    origin = _locate(source, format_)
    columns = format_.column_of(source.columns)
    dropped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows: list[Row] = []
    matched, enough = False, _enough(source, at_most)
    for number, values in _ordered(origin, format_, source, seed, wanted):
        if not matches(values, source.where, f"dataset {origin.dataset}"):
            continue
        matched = True
        record = Record(origin.dataset, number, values, columns, left_out)
        row_id = str(values.get("id") or f"{origin.dataset}/{source.split}/{number}")
        try:
            rows.append(_encodable(make(format_, record, row_id)))
        except UnusableRow as reason:
            dropped[str(reason)] += 1
        if enough is not None and len(rows) == source.skip + enough:
            break
    if not matched:
        raise RequestError(f"dataset {origin.dataset} has no row of split '{source.split}'{_said(source)}")
    if dropped:
        told = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        if not rows:
            raise RequestError(f"dataset {origin.dataset} has no usable {wanted}: {told}")
        _logger.warning("dataset %s: left out %s rows (%s)", origin.dataset, dropped.total(), told)
    for what, count in left_out.items():
        _logger.warning("dataset %s: left out %s %s", origin.dataset, count, what)
    return _chosen(origin.dataset, rows, source, at_most)


def _ordered(
    origin: LocalFiles | HubDataset, format_: Format, source: Source, seed: int, wanted: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number and columns of every row of the shard, in the run's order; a row is read when its turn comes."""
    if source.stream:
        if format_.regroup is not None:
            raise RequestError(
                f"dataset {source.path} in format '{format_.name}' puts rows together and cannot be streamed; "
                "leave stream out"
            )
        coming = shuffled_stream(enumerate(origin.stream()), seed, source.split, STREAM_BUFFER)
        yield from shard(coming, source.part)
        return
    values: Sequence[Mapping[str, Any]] = origin.rows()
    if format_.regroup is not None:
        values = format_.regroup(values, wanted)
    for number in shard(shuffled(len(values), seed, source.split), source.part):
        yield number, values[number]


def _encodable(row: Row) -> Row:
    """The row; UnusableRow when a text of it is none that could be written or tokenised."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # JSON's \\ud83d by itself, where a text was cut within a character
        raise UnusableRow("half a character (an unpaired surrogate)") from None
    return row


def _said(source: Source) -> str:
    """The conditions that no row meets, to end an error with."""
    conditions = [f"{place} = {value!r}" for place, value in source.where.items()]
    shard_ = [f"a place in shard {source.shard}"] if source.shard else []
    return f" with {' and '.join([*conditions, *shard_])}" if conditions or shard_ else ""


def _with_system(messages: list[Message], source: Source) -> list[Message]:
    if source.system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": source.system}, *messages]


def _answer(text: str, cut: bool) -> Message:
    if not cut:
        return {"role": "assistant", "content": text}
    if not text:
        raise UnusableRow("an answer that was cut before its first word")  # neither text nor end: nothing to learn
    return {"role": "assistant", "content": text, "interrupted": True}


def _select(rows: list[Row], source: Source, seed: int, at_most: int | None) -> list[Row]:
    order = shard(shuffled(len(rows), seed, source.split), source.part)
    return _chosen(NANO, [rows[number] for number in order], source, at_most)


def _enough(source: Source, at_most: int | None) -> int | None:
    """How many rows are taken where there are so many; None for all."""
    return min((count for count in (source.rows, at_most) if count is not None), default=None)


def _chosen(dataset: str, ordered: list[Row], source: Source, at_most: int | None) -> list[Row]:
    """The rows that `skip` and `rows` choose of the usable ones, in order."""
    if source.skip and source.skip >= len(ordered):
        count = len(ordered)
        raise RequestError(f"dataset {dataset} has {count} rows of split '{source.split}'; skip leaves none of them")
    enough = _enough(source, at_most)
    rows = ordered[source.skip :][:enough]
    if source.rows is not None and enough is not None and len(rows) < enough:
        _logger.warning("dataset %s: %s rows were asked for, it has %s", dataset, source.rows, len(rows))
    return rows


def _kind(format_: Format, record: Record) -> str:
    kind = record.values.get("kind")
    return kind if isinstance(kind, str) else format_.kind or record.dataset
