"""Finds tasks by name: the nano ones, lm-eval's, and a user's own folder, which comes first.

The stock index of lm-eval takes 7.5 s to build, so it is built only for its groups and tags: a task's file is found by
searching the text of the files (0.5 s). `task_version` reads a version without importing lm-eval.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.core.errors import RequestError, suggest
from posttrain.eval_harness.task_files import leaves, read_entries, read_task_file

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

NANO_TASKS = ("nano_choice", "nano_problems", "nano_mc2", "nano_instructions")
"""The four held-out tasks of the nano lab; each has a `_validation` twin for tuning."""

TASK_FOLDER = Path(__file__).parent / "tasks"

STOCK_FOLDERS = {"gsm8k": "gsm8k", "mmlu": "mmlu/default", "truthfulqa_mc2": "truthfulqa", "ifeval": "ifeval"}
"""Where lm-eval keeps the benchmarks that the reference lab reports."""

_TASK = re.compile(rb"""^["']?task["']?[ \t]*:[ \t]*["']?([\w.+-]+)["']?[ \t]*$""", re.MULTILINE)
_MENTIONED = re.compile(
    rb"""^(?:["']?(?:group|tag)["']?[ \t]*:|[ \t]*-)[ \t]*["']?([\w.+-]+)["']?[ \t]*$""", re.MULTILINE
)


def load_tasks(names: Sequence[str], include_path: Path | None = None) -> dict[str, Any]:
    """lm-eval's task dictionary of the named tasks, groups or tags: {"tasks", "groups", "group_map"}.

    RequestError for no names, an unknown name (with the nearest one), a folder without tasks, a malformed task file,
    and for IFEval without NLTK's punkt_tab.
    """
    if not names:
        raise RequestError(f"no task named; choose for example {','.join(NANO_TASKS)}")
    try:
        return mirrored_tasks(names, include_path).load(list(dict.fromkeys(names)))
    except (KeyError, ImportError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"tasks {','.join(names)} cannot be built: {type(error).__name__}: {reason}") from error


def mirrored_tasks(names: Sequence[str], include_path: Path | None = None) -> "TaskManager":
    """lm-eval's index with every task under `names` reading a local copy of its data where there is one.

    For `simple_evaluate(task_manager=…)` as well: stock lm-eval then reads what we read.
    """
    manager = task_manager(names, include_path)
    _read_from_mirror(manager, names)
    return manager


def check_tasks(names: Sequence[str], include_path: Path | None = None) -> None:
    """RequestError for the first name that no task, group or tag has; reads files as text, without loading lm-eval."""
    if include_path is not None:
        _check_user_folder(Path(include_path))
    unknown = [name for name in names if task_version(name, include_path) is None]
    stock = stock_names() if unknown else {}
    own = read_entries(task_folders(names, include_path))
    for name in unknown:
        if name not in stock and name not in own:
            near = difflib.get_close_matches(name, {*stock, *own}, n=1)
            raise RequestError(f"unknown task '{name}' {suggest(name, near or [*NANO_TASKS, *STOCK_FOLDERS])}")


def task_version(name: str, include_path: Path | None = None) -> Any:
    """The version in a task file's metadata, includes followed; None when the name is in no known folder.

    Light: reads YAML only, so that a caller can look a finished result up without loading lm-eval.
    """
    for folder in task_folders([name], include_path)[::-1]:
        for path in sorted(folder.glob("**/*.yaml")):
            config = read_task_file(path)
            if name in (config.get("task"), config.get("group")):
                return (config.get("metadata") or {}).get("version")
    return None


def task_manager(names: Sequence[str], include_path: Path | None) -> "TaskManager":
    """lm-eval's index of the folders in which these names can be; RequestError for one that is in none."""
    from lm_eval.tasks import TaskManager

    if include_path is not None:
        _check_user_folder(Path(include_path))
    folders = task_folders(names, include_path)
    manager = TaskManager(include_path=folders, include_defaults=False)
    missing = [name for name in names if name not in manager.task_index]
    if not missing:
        return manager
    stock = stock_names()
    for name in missing:
        if name not in stock:
            # Of fourteen thousand names only the nearest help; without a near one, the well-known.
            near = difflib.get_close_matches(name, {*stock, *manager.all_tasks}, n=1)
            raise RequestError(f"unknown task '{name}' {suggest(name, near or [*NANO_TASKS, *STOCK_FOLDERS])}")
    files = [path for name in missing if (path := stock[name])]
    if len(files) == len(missing):
        manager = TaskManager(include_path=[*{path.parent: None for path in files}, *folders], include_defaults=False)
    else:
        # Groups and tags span folders: only the whole index, which takes 7.5 s, knows their members.
        manager = TaskManager(include_path=folders, include_defaults=True)
    for name in missing:
        if name not in manager.task_index:
            raise RequestError(f"unknown task '{name}' {suggest(name, manager.all_tasks)}")
    return manager


def stock_names() -> dict[str, Path | None]:
    """Names that lm-eval's own task files mention: a task's with its file, a group's or tag's with None."""
    names: dict[str, Path | None] = {}
    for path in sorted(_lm_eval_tasks().glob("**/*.yaml")):
        content = path.read_bytes()
        for found in _MENTIONED.findall(content):
            names.setdefault(found.decode(), None)
        for found in _TASK.findall(content):
            names[found.decode()] = path
    return names


def task_folders(names: Iterable[str], include_path: Path | None) -> list[Path]:
    """Folders to index; a later one wins, so the user's is last."""
    stock = [_lm_eval_tasks() / STOCK_FOLDERS[name] for name in dict.fromkeys(names) if name in STOCK_FOLDERS]
    return [*stock, TASK_FOLDER, *([Path(include_path)] if include_path is not None else [])]


def _lm_eval_tasks() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _check_user_folder(folder: Path) -> None:
    """lm-eval passes over what it cannot read; a user should hear of it."""
    if not folder.is_dir():
        raise RequestError(f"--include-path {folder} is not a folder")
    files = sorted(folder.glob("**/*.yaml"))
    if not files:
        raise RequestError(f"--include-path {folder} holds no task file (*.yaml)")
    for path in files:
        read_task_file(path)


def _read_from_mirror(manager: "TaskManager", names: Iterable[str]) -> None:
    """Makes every task under `names` a LocalTask."""
    from lm_eval.tasks._index import Entry, Kind
    from lm_eval.tasks._yaml_loader import load_yaml

    from posttrain.eval_harness.mirror import LocalTask

    index = manager.task_index
    for name in leaves(index, names):
        entry = index[name]
        if entry.kind is not Kind.TASK or entry.yaml_path is None:
            continue
        if entry.cfg and entry.cfg.get("dataset_path") == "google/IFEval":
            check_punkt(name)
        config = load_yaml(entry.yaml_path, resolve_func=True) | {"class": LocalTask}
        index[name] = Entry(name=name, kind=Kind.PY_TASK, yaml_path=None, cfg=config, tags=entry.tags)


def check_punkt(task: str) -> None:
    """RequestError when NLTK cannot load the sentence splitter that IFEval needs in the middle of its run."""
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        PunktTokenizer("english")
    except (LookupError, OSError):  # no folder of that name, or one without its files
        raise RequestError(
            f"task {task} needs NLTK's punkt_tab, which is not installed: run `python -m nltk.downloader punkt_tab` "
            "where there is a network, and point NLTK_DATA to its folder"
        ) from None
