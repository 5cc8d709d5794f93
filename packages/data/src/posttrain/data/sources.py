"""Data by name: a recipe's `Source` to the rows that a trainer takes.

    load_conversations   demonstrations      load_pairs      preferences
    load_rankings        K-wise preferences  load_prompts    prompts with what their verifier needs

All rows are put in an order that derives from the seed, then the first `rows` are taken: a smaller selection is the
beginning of a larger one. The same source and seed give the same rows in the same order everywhere. `describe_source`
says what defines them, for the config hash. Nothing is tokenised here.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field, model_validator

from posttrain.core.config import Settings
from posttrain.core.errors import RequestError
from posttrain.core.seeds import derive_seed
from posttrain.data import generated
from posttrain.data.formats import Format, Record, UnusableRow, find_format, gives
from posttrain.data.origins import HubDataset, LocalFile, locate
from posttrain.data.rows import Conversation, Pair, Prompt, Ranking

NANO = "nano"

Row = TypeVar("Row")

_logger = logging.getLogger(__name__)


class Source(Settings):
    """Where rows come from, and which of them."""

    path: str = Field(min_length=1)
    """`nano` for the generated corpora, a Hub id (`openai/gsm8k`), or a file or folder. A Hub id is looked up under
    $POSTTRAIN_DATA/<Hub id>/<config>/<split>.jsonl first."""
    config: str | None = None
    """The dataset's configuration, for HH-RLHF its folder; none: the usual one, or the only one."""
    split: str = "train"
    """The dataset's split."""
    revision: str | None = None
    """The Hub's branch, tag or commit; resolved to a commit and recorded. With one, mirrors are not looked at."""
    rows: int | None = Field(default=None, gt=0)
    """How many rows to take, after shuffling by the run's seed; none: all."""
    skip: int = Field(default=0, ge=0)
    """How many of the shuffled usable rows to pass over first: those that another source of the same split takes."""
    format: str | None = None
    """A name in posttrain.data.formats; none: the one of the Hub id, else `generic`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What a format calls a column, to what this dataset calls it: `{prompt: instruction}`."""

    @model_validator(mode="after")
    def _nano_has_no_files(self) -> "Source":
        if self.path == NANO and (self.config or self.revision or self.format or self.columns):
            raise ValueError("nano is generated: of config, revision, format and columns it takes none")
        return self


def load_conversations(source: Source, seed: int) -> list[Conversation]:
    """Demonstrations that end with the assistant's message."""
    if source.path == NANO:
        return _select(generated.conversations(source.split), source, seed)

    def make(format_: Format, record: Record, row_id: str) -> Conversation:
        assert format_.conversation is not None
        return {"id": row_id, "messages": format_.conversation(record)}

    return _load(source, seed, "conversation", make)


def load_pairs(source: Source, seed: int) -> list[Pair]:
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
        return {
            "id": row_id,
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "kind": _kind(format_, record),
        }

    return _load(source, seed, "pair", make)


def load_rankings(source: Source, seed: int) -> list[Ranking]:
    """K answers a prompt, best first. Rows with equal answers or fewer than two are left out and counted on the log."""
    if source.path == NANO:
        raise RequestError("nano has no rankings to load; its preferences are sampled from the SFT policy")

    def make(format_: Format, record: Record, row_id: str) -> Ranking:
        assert format_.ranking is not None
        prompt, completions = format_.ranking(record)
        if len(set(completions)) < len(completions):
            raise UnusableRow("identical answers")
        return {"id": row_id, "prompt": prompt, "completions": completions, "kind": _kind(format_, record)}

    return _load(source, seed, "ranking", make)


def load_prompts(source: Source, seed: int) -> list[Prompt]:
    """Prompts, each with the reference that its verifier needs."""
    if source.path == NANO:
        return _select(generated.prompts(source.split), source, seed)

    def make(format_: Format, record: Record, row_id: str) -> Prompt:
        assert format_.prompt is not None
        prompt, reference = format_.prompt(record)
        return {"id": row_id, "prompt": prompt, "reference": reference, "kind": _kind(format_, record)}

    return _load(source, seed, "prompt", make)


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
        "columns": format_.column_of(source.columns),
    }


def _config(source: Source, format_: Format) -> str | None:
    return source.config or (format_.default_config if source.path in format_.hub_ids else None)


def _locate(source: Source, format_: Format) -> LocalFile | HubDataset:
    config = _config(source, format_)
    return locate(source.path, config, source.split, source.revision, format_.config_is_folder)


def _load(source: Source, seed: int, wanted: str, make: Callable[[Format, Record, str], Row]) -> list[Row]:
    format_ = find_format(source.path, source.format)
    if getattr(format_, wanted) is None:
        raise RequestError(
            f"dataset {source.path} in format '{format_.name}' holds no {wanted}s "
            f"(it gives {', '.join(gives(format_))}); set format to the one that it has, or take another dataset"
        )
    origin = _locate(source, format_)
    columns = format_.column_of(source.columns)
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    values = origin.read()
    for number in _order(len(values), source, seed):
        record = Record(origin.dataset, number, values[number], columns)
        row_id = str(values[number].get("id") or f"{origin.dataset}/{source.split}/{number}")
        try:
            rows.append(make(format_, record, row_id))
        except UnusableRow as reason:
            dropped[str(reason)] += 1
        if source.rows is not None and len(rows) == source.skip + source.rows:
            break
    if dropped:
        told = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
        if not rows:
            raise RequestError(f"dataset {origin.dataset} has no usable {wanted}: {told}")
        _logger.warning("dataset %s: left out %s rows (%s)", origin.dataset, dropped.total(), told)
    return _chosen(origin.dataset, rows, source)


def _select(rows: list[Row], source: Source, seed: int) -> list[Row]:
    return _chosen(NANO, [rows[number] for number in _order(len(rows), source, seed)], source)


def _chosen(dataset: str, ordered: list[Row], source: Source) -> list[Row]:
    """The rows that `skip` and `rows` choose of the usable ones, in order."""
    if source.skip and source.skip >= len(ordered):
        count = len(ordered)
        raise RequestError(f"dataset {dataset} has {count} rows of split '{source.split}'; skip leaves none of them")
    rows = ordered[source.skip :][: source.rows]
    _warn_if_fewer(dataset, len(rows), source)
    return rows


def _warn_if_fewer(dataset: str, there: int, source: Source) -> None:
    if source.rows is not None and there < source.rows:
        _logger.warning("dataset %s: %s rows were asked for, it has %s", dataset, source.rows, there)


def _order(count: int, source: Source, seed: int) -> list[int]:
    """The numbers of a data set's rows in the run's order."""
    order = list(range(count))
    random.Random(derive_seed(seed, "rows", source.split)).shuffle(order)
    return order


def _kind(format_: Format, record: Record) -> str:
    kind = record.values.get("kind")
    return kind if isinstance(kind, str) else format_.kind or record.dataset
