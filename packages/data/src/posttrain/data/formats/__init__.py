"""One small declarative entry per dataset. To add one: an entry in `published`, or a file here named in `FORMATS`."""

from posttrain.core.errors import RequestError, suggest
from posttrain.data.formats.format import Format, Record, UnusableRow, gives
from posttrain.data.formats.generic import GENERIC
from posttrain.data.formats.gsm8k import GSM8K
from posttrain.data.formats.hh_rlhf import HH_RLHF
from posttrain.data.formats.published import PUBLISHED

FORMATS: dict[str, Format] = {format_.name: format_ for format_ in (GENERIC, GSM8K, HH_RLHF, *PUBLISHED)}

__all__ = ["FORMATS", "Format", "Record", "UnusableRow", "find_format", "gives"]


def find_format(path: str, name: str | None) -> Format:
    """The format called `name`, or the one of this Hub id, or the generic one."""
    if name is not None:
        if name not in FORMATS:
            raise RequestError(f"unknown format '{name}' {suggest(name, FORMATS)}")
        return FORMATS[name]
    return next((f for f in FORMATS.values() if path in f.hub_ids), GENERIC)
