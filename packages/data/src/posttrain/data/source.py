"""What a recipe says about a set of rows: where they are, which of them, and what its columns are called."""

from typing import Any

from pydantic import Field, model_validator

from posttrain.core.config import Settings

NANO = "nano"
STREAM_BUFFER = 10_000
"""Rows that a stream is shuffled among: part of what defines its order."""

Scalar = str | int | float | bool


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
    """What a format calls a column, to what this dataset calls it: a name (`{prompt: instruction}`), a place inside
    nested columns (`{reference: meta.answers.0}`), or a text with columns in braces (`{prompt: "{title}: {body}"}`)."""
    where: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict)
    """Take only rows whose column (or place, as in `columns`) has this value, or one of these: `{lang: en}`."""
    system: str | None = Field(default=None, min_length=1)
    """A system message before every conversation and prompt that has none of its own."""
    shard: str | None = Field(default=None, pattern=r"^\d+/[1-9]\d*$")
    """One of n parts, `0/4` to `3/4`: of the shuffled rows every n-th. Together they are all rows, each once."""
    stream: bool = False
    """Read front to back without an index or a full download, for what does not fit; shuffled among 10,000 rows at a
    time, so in another order than without."""

    @model_validator(mode="after")
    def _nano_has_no_files(self) -> "Source":
        if self.path == NANO and (self.config or self.revision or self.format or self.columns):
            raise ValueError("nano is generated: of config, revision, format and columns it takes none")
        if self.path == NANO and (self.where or self.system or self.stream):
            raise ValueError("nano is generated: of where, system and stream it takes none")
        return self

    @model_validator(mode="after")
    def _shard_is_one_of_them(self) -> "Source":
        if self.shard and self.part[0] >= self.part[1]:
            index, count = self.part
            raise ValueError(f"shard {index}/{count} is beyond the last, {count - 1}/{count}; they count from 0")
        return self

    @property
    def part(self) -> tuple[int, int]:
        """Which shard of how many."""
        index, _, count = (self.shard or "0/1").partition("/")
        return int(index), int(count)

    def selection(self) -> dict[str, Any]:
        """Of what was added to `rows` and `skip`, what is set, as JSON: it defines which rows there are."""
        said: dict[str, Any] = {}
        if self.where:
            said["where"] = self.model_dump(mode="json", include={"where"})["where"]
        if self.system is not None:
            said["system"] = self.system
        if self.shard is not None:
            said["shard"] = self.shard
        if self.stream:
            said["stream"] = {"buffer": STREAM_BUFFER}
        return said
