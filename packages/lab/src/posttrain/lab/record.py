"""The committed record of a comparison: its table, pictures, and per-item results, from which the table can be rebuilt.

Lies in one folder: `<name>.md`, `<name>.json`, pictures, `items/<name>/<config_hash>.jsonl.gz` and, for all records
together, `metrics.json`. A published row goes only by `retract`, which says why, and comes back only with a reason.
Whatever is cut off between two files can be done again: the JSON, from which all else is read, is written last.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.files import atomic_write_bytes, atomic_write_json, atomic_write_text, read_json
from posttrain.core.statistics import Estimate
from posttrain.eval_harness.clusters import cluster_of
from posttrain.lab.cells import as_json
from posttrain.lab.costs import RowCost
from posttrain.lab.judge_scores import JudgedBy, Judges
from posttrain.lab.published_metrics import (
    NO_ONE,
    published_hashes,
    record_paths,
    refuse_retracted,
    retract_metrics,
    retracted_rows,
)
from posttrain.lab.published_tables import FOLDER, Beside, published_beside
from posttrain.lab.render import markdown
from posttrain.lab.table import Scores, Table, TableRow, build_table

HASH_CHARACTERS = 12


def publish_table(
    folder: Path,
    name: str,
    table: Table,
    described: Mapping[str, Any],
    pictures: Sequence[Path],
    reinstated: Mapping[str, str] = NO_ONE,
) -> None:
    """Writes a record. RequestError, before anything is written, if evidence that it holds now would vanish, or for a
    row that was retracted and is not among `reinstated` (config_hash to why it comes back).

    `described` is what stands in the JSON beside the table: recipe, commands, stages, what it took (see elapsed) where
    that is known, and `with_published`, the recipe's `table`, where published rows are to stand beside. `pictures` are
    copied.
    """
    place = folder / f"{name}.json"
    before = read_json(place) if place.exists() else {"rows": [], "retracted": []}
    refuse_retracted(folder, {row.config_hash: row.name for row in table.rows}, reinstated)
    for row in before["rows"]:
        _refuse_loss(place, row, table)
    for row in table.rows:
        atomic_write_bytes(_items_path(folder, name, row.config_hash), _packed(row))
    shown = []
    for picture in pictures:
        copy = folder / f"{name}-{picture.stem.removeprefix('comparison-')}.png"
        atomic_write_bytes(copy, picture.read_bytes())
        shown.append(copy.name)
    notes = [_reinstated(note, reinstated) for note in before["retracted"]]
    _write(folder, name, table, {**described, "pictures": shown, "retracted": notes})


def retract(folder: Path, config_hash: str, why: str) -> list[str]:
    """Takes the row with this hash (or beginning of one) out of all records; the names of those that had it.

    The tables are made again from the items of the rows that stay; pictures, which show the row, are removed. What was
    cut off is done to its end by the same call; of a row that was retracted before, the first reason stays.
    RequestError for no reason, no such row, or a beginning that is not one row's alone.
    """
    if not why.strip():
        raise RequestError("--why needs the reason; it stands in the record from then on")
    records = {path.stem: read_json(path) for path in record_paths(folder)}
    shown = {row["config_hash"] for record in records.values() for row in record["rows"]}
    gone_before = retracted_rows(folder)
    found = {each for each in shown | gone_before.keys() | published_hashes(folder) if each.startswith(config_hash)}
    if len(found) != 1:
        known = ", ".join(sorted(each[:8] for each in shown))
        what = "no published row has" if not found else f"{len(found)} published rows have"
        raise RequestError(f"{what} a config_hash that begins with '{config_hash}' (there are: {known})")
    (full,) = found
    why = gone_before.get(full, why)
    having = {name: record for name, record in records.items() if full in _hashes(record)}
    without = {name: _table_without(folder, name, record, full) for name, record in having.items()}
    retract_metrics(folder, full, why)
    for name, record in having.items():
        for picture in record["pictures"]:
            (folder / picture).unlink(missing_ok=True)
        method = next(row["method"] for row in record["rows"] if row["config_hash"] == full)
        notes = [*record["retracted"], {"method": method, "config_hash": full, "why": why}]
        described = {key: value for key, value in record.items() if key not in as_json(without[name])}
        _write(folder, name, without[name], {**described, "pictures": [], "retracted": notes})
    for name in records:
        _items_path(folder, name, full).unlink(missing_ok=True)
    return list(having)


def _refuse_loss(place: Path, published: Mapping[str, Any], table: Table) -> None:
    """RequestError if `table` lacks what the published row holds: row, seed, column, values of one, preferences."""
    short = published["config_hash"][:8]
    name = f"{published['method']} ({short})"
    row = next((row for row in table.rows if row.config_hash == published["config_hash"]), None)
    if row is None:
        _refuse(place, name, "publish it again as well", short)
        return
    before = {int(seed) for values in published["by_seed"].values() for seed in values}
    now = {seed for scores in row.scores.values() for seed in scores.seeds}
    if lost := sorted(before - now):
        seeds = f"seed{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))}"
        _refuse(place, f"{seeds} of {name}", f"publish with --seeds {','.join(map(str, sorted(before | now)))}", short)
    for column, estimate in published["columns"].items():
        if column not in table.columns or column not in row.scores:
            _refuse(place, f"column '{column}' of {name}", "publish with a recipe that has it", short)
        kept = sum(seed in before for seed in row.scores[column].seeds)
        if kept < estimate["n"]:
            what = f"{estimate['n'] - kept} values in column '{column}' of {name}"
            _refuse(place, what, "publish with the evaluation that made them", short)
    for judge, rate in (published["judge"] or {}).items():
        scores = row.judged.get(judge)
        kept = sum(seed in before for seed in scores.seeds) if scores else 0
        if kept < rate["n"]:
            what = f"{rate['n'] - kept} preferences of judge {judge} for {name}"
            _refuse(place, what, "judge its answers first: posttrain compare --judge", short)


def _refuse(place: Path, what: str, remedy: str, short: str) -> None:
    retract_it = f"posttrain results retract {short} --why …"
    raise RequestError(f"{place} holds {what}, which would vanish; {remedy}, or take the row out first: {retract_it}")


def _reinstated(note: Mapping[str, Any], reinstated: Mapping[str, str]) -> Mapping[str, Any]:
    if "reinstated" in note or note["config_hash"] not in reinstated:
        return note
    return {**note, "reinstated": reinstated[note["config_hash"]]}


def _hashes(record: Mapping[str, Any]) -> set[str]:
    return {row["config_hash"] for row in record["rows"]}


def _table_without(folder: Path, name: str, record: Mapping[str, Any], config_hash: str) -> Table:
    try:
        rows = [read_row(folder, name, row) for row in record["rows"] if row["config_hash"] != config_hash]
        judges = _judges(record)
    except (KeyError, TypeError) as error:
        what = f"{folder / name}.json is of another version of posttrain ({error})"
        raise RequestError(f"{what}; publish it again, or give its rows the fields that they have now") from None
    columns, tasks, headline = record["columns"], record["tasks"], record["headline"]
    return build_table(rows, columns, tasks, headline, partial=True, judges=judges)


def _judges(record: Mapping[str, Any]) -> Judges | None:
    """Who judged a published table; nobody did where its record says nothing of it. KeyError where it is of another
    form."""
    said = record.get("judge")
    if not said:
        return None
    identities = {judge: _of_seeds(of_judge) for judge, of_judge in said["identities"].items()}
    return Judges(said["task"], tuple(said["judges"]), said["gold"], identities)


def _of_seeds(plain: Mapping[str, Any]) -> dict[int, Any]:
    """What JSON has by seed."""
    return {int(seed): value for seed, value in plain.items()}


def _write(folder: Path, name: str, table: Table, described: Mapping[str, Any]) -> None:
    commands = "\n".join(f"    {command}" for command in described["commands"])
    took = f"{described['took']['sentence']}\n\n" if described.get("took") else ""
    pictures = "".join(f"\n![{Path(file).stem}]({file})\n" for file in described["pictures"])
    gone = "".join(f"- {_said(note)}\n" for note in described["retracted"])
    retracted = f"\n## Retracted\n\n{gone}" if gone else ""
    title = f"# {described['recipe']}: {described['title']}"
    beside = _beside(folder, described)
    page = f"{title}\n\nMade by\n\n{commands}\n\n{took}{markdown(table, beside)}{pictures}{retracted}"
    atomic_write_text(folder / f"{name}.md", page)
    published = {"published": [each.plain() for each in beside]} if beside else {}
    atomic_write_json(folder / f"{name}.json", {**described, **as_json(table), **published})


def _beside(folder: Path, described: Mapping[str, Any]) -> list[Beside]:
    """What others have published, for a record that was made with it and as long as that lies there."""
    titles = described.get("with_published")
    if not titles or not any((folder / FOLDER).glob("*.yaml")):
        return []
    columns = {}
    for key, title in titles.items():
        task, _, metric = key.partition("/")
        columns[task, metric] = title
    return published_beside(folder, columns)


def _said(note: Mapping[str, Any]) -> str:
    again = f"; published again: {note['reinstated']}" if "reinstated" in note else ""
    return f"{note['method']} ({note['config_hash'][:8]}): {note['why']}{again}"


def _items_path(folder: Path, name: str, config_hash: str) -> Path:
    return folder / "items" / name / f"{config_hash[:HASH_CHARACTERS]}.jsonl.gz"


def _packed(row: TableRow) -> bytes:
    """A line a column or judge and seed, in columns, which compress well; the same bytes for the same items."""
    lines = []
    kinds = {"column": row.scores, "judge": row.judged}
    for kind, name, scores in ((kind, *each) for kind, by_name in kinds.items() for each in by_name.items()):
        for seed in sorted(set(scores.seeds)):
            one = scores.of_seed(seed)
            line = {kind: name, "seed": seed, "items": one.items, "places": one.places, "values": one.values}
            if named := {item: c for item, c in one.shared.items() if cluster_of({"id": item}) != c}:
                line["clusters"] = named
            lines.append(json.dumps(line, ensure_ascii=False))
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def read_row(folder: Path, name: str, plain: Mapping[str, Any]) -> TableRow:
    """A published row with its items; KeyError or TypeError where it is of another form."""
    path = _items_path(folder, name, plain["config_hash"])
    columns: dict[str, list[Scores]] = {}
    judges: dict[str, list[Scores]] = {}
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        part = json.loads(line)
        seeds = (part["seed"],) * len(part["items"])
        # Kept are the clusters that a task names; of generated items they follow from the ids, here as in a run.
        clusters = {item: c for item in part["items"] if (c := cluster_of({"id": item})) != item}
        clusters |= part.get("clusters", {})
        one = Scores(tuple(part["items"]), seeds, tuple(part["places"]), tuple(part["values"]), clusters)
        if "judge" in part:
            judges.setdefault(part["judge"], []).append(one)
        else:
            columns.setdefault(part["column"], []).append(one)
    accuracy = plain["reward_accuracy"]
    return TableRow(
        name=plain["method"],
        config_hash=plain["config_hash"],
        seeds=tuple(plain["seeds"]),
        scores={column: _pooled(parts) for column, parts in columns.items()},
        learns_from=plain["learns_from"],
        trials=plain["trials"],
        reward_accuracy=Estimate(*(accuracy[key] for key in ("value", "standard_error", "n"))) if accuracy else None,
        implicit=bool(accuracy and accuracy["implicit"]),
        cost=RowCost(**plain["cost"]) if plain["cost"] else None,
        start=plain["start"],
        bounds=tuple(plain["bounds"]),
        footnotes=tuple(plain["footnotes"]),
        judged={judge: _pooled(parts) for judge, parts in judges.items()},
        judged_by={
            judge: {seed: JudgedBy(**by) for seed, by in _of_seeds(rate["judged_by"]).items()}
            for judge, rate in (plain.get("judge") or {}).items()
        },
    )


def _pooled(parts: Sequence[Scores]) -> Scores:
    """The values of several seeds together."""
    return Scores(
        tuple(item for part in parts for item in part.items),
        tuple(seed for part in parts for seed in part.seeds),
        tuple(place for part in parts for place in part.places),
        tuple(value for part in parts for value in part.values),
        {item: cluster for part in parts for item, cluster in part.shared.items()},
    )
