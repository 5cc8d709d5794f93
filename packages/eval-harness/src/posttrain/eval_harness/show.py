"""Item files read beside their task: what was asked, what is right, what the model said, side by side.

Item files hold no questions; these come from the task by the items' ids.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.core.errors import RequestError
from posttrain.core.files import read_jsonl
from posttrain.eval_harness.catalog import load_tasks
from posttrain.eval_harness.quiet import quiet
from posttrain.eval_harness.raw_results import item_id


@dataclass(frozen=True)
class Shown:
    """One item."""

    task: str
    id: str
    question: str
    gold: str
    answer: str
    """What the model said; of a task of given answers, the likeliest one; of several samples, all."""
    prediction: str
    """What was taken from the answer."""
    score: float | None

    @property
    def wrong(self) -> bool:
        """Whether it got less than the full score."""
        return self.score is None or self.score < 1.0


def item_files(path: Path, task: str | None = None) -> list[Path]:
    """The item files that `path`, a file or an evaluation's folder, means; of one task or group if that is named.

    A group's own file repeats the items of its tasks, whose files stand for it. A checkpoint's folder (runs/eval/…) has
    a folder for each way in which it was evaluated: the only one that holds the task is meant. RequestError when there
    is none, or more than one.
    """
    there = [path] if path.is_file() else _item_files_in(path, "*.jsonl") or _of_one_evaluation(path, task)
    members = {file.stem: _members(file, {other.stem for other in there} - {file.stem}) for file in there}
    asked = members.get(task or "") or {task or ""}
    files = [file for file in there if not members[file.stem] and (task is None or file.stem in asked)]
    if not files:
        of_task = f" of task {task}" if task else ""
        raise RequestError(
            f"{path} holds no item file{of_task} (<task>.jsonl); give an evaluation's folder or one file"
        )
    return files


def _item_files_in(folder: Path, pattern: str) -> list[Path]:
    return [file for file in sorted(folder.glob(pattern)) if file.name != "metrics.jsonl"]


def _of_one_evaluation(folder: Path, task: str | None) -> list[Path]:
    """The item files of the one evaluation below a checkpoint's folder that has the task."""
    posed: dict[Path, list[Path]] = {}
    for file in _item_files_in(folder, "*/*.jsonl"):
        posed.setdefault(file.parent, []).append(file)
    asked = [files for files in posed.values() if task is None or task in {file.stem for file in files}]
    if len(asked) > 1:
        named = ", ".join(files[0].parent.name for files in asked)
        raise RequestError(f"{folder} holds {len(asked)} evaluations ({named}); give the folder of one of them")
    return asked[0] if asked else []


def _members(file: Path, tasks: set[str]) -> set[str]:
    """The tasks of a group's file, before the ids of its items; empty for a task's own."""
    named = {str(item.get("id", "")).partition("/")[0] for item in read_jsonl(file)} if tasks else set()
    return named if named <= tasks else set()


def shown_items(file: Path, include_path: Path | None = None) -> Iterator[Shown]:
    """The items of one file in its order; RequestError for what is no item file or not this task's."""
    name = file.stem
    items = read_jsonl(file)
    for number, item in enumerate(items, start=1):
        if not {"id", "score"} <= item.keys():
            raise RequestError(f"{file}:{number} is no item of an evaluation: it has no id or no score")
    with quiet():
        loaded = load_tasks([name], include_path)["tasks"]
        if name not in loaded:
            raise RequestError(f"{file}: '{name}' is a group; show the files of its tasks")
        task = loaded[name]
        docs = {item_id(doc, number): doc for number, doc in enumerate(task.eval_docs)}
    for item in items:
        if item["id"] not in docs:
            raise RequestError(f"{file}: task {name} has no item '{item['id']}'; was another version evaluated?")
        try:
            yield _shown(task, name, docs[item["id"]], item)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RequestError(
                f"{file}: item '{item['id']}' is not as task {name} leaves it ({type(error).__name__}: {error}); was "
                "it edited, or another version evaluated?"
            ) from error


def _shown(task: Any, name: str, doc: Mapping[str, Any], item: Mapping[str, Any]) -> Shown:
    prediction, target = item.get("prediction"), task.doc_to_target(doc)
    score = None if item["score"] is None else float(item["score"])
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = task.doc_to_choice(doc)
        answer = str(choices[int(item["prediction"])])
        target = choices[target] if isinstance(target, int) else target
    else:
        answer = item.get("text", "")
        if samples := item.get("samples"):
            answer = "\n\n".join(f"[{sample['score']:g}] {sample['text']}" for sample in samples)
            prediction = ", ".join(str(sample["prediction"]) for sample in samples)
    return Shown(name, item["id"], str(task.doc_to_text(doc)), str(target), answer, str(prediction), score)
