"""`posttrain compare` as a user runs it: every arm from one base, in one table, whatever happens on the way.

The runs are short, so their numbers mean nothing; what is checked is that everything is there, is reused, survives
being killed, and ends with the same numbers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from posttrain.core.files import read_json

pytestmark = [pytest.mark.service, pytest.mark.long]

SMALL = (
    "data.sft.rows=256",
    "sft.epochs=1",
    "evaluation.limit=8",
    "evaluation.policy_prompts=12",
    "ppo.steps=4",
    "ppo.save_every=1",
    "ppo.prompts_per_step=16",
    "rloo.steps=3",
    "rloo.save_every=1",
    "grpo.steps=1",
    "threads=1",
)
ON_THE_VERIFIER = (
    "reward=verifier",
    "data.preference_prompts=null",
    "rloo.prompts_per_step=4",
    "grpo.prompts_per_step=4",
)
ON_PAIRS = ("data.preference_prompts.rows=160", "preferences.chunk_prompts=40", "rm.length=0.3")


def command(methods: str, sets: tuple[str, ...], runs: Path, *arguments: str) -> list[str]:
    given = [part for override in (*SMALL, *sets) for part in ("--set", override)]
    compare = [sys.executable, "-m", "posttrain.core", "compare", "--methods", methods, "--jobs", "2"]
    return [*compare, "--runs", str(runs), *given, *arguments]


def finish(arguments: list[str]) -> tuple[str, str]:
    """Runs to the end: standard output and error."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


on_the_verifier = partial(command, "rloo,grpo", ON_THE_VERIFIER)
on_pairs = partial(command, "dpo,ppo", ON_PAIRS)


def written(runs: Path) -> dict:
    return json.loads((runs / "nano" / "comparison.json").read_text())


def content(runs: Path) -> dict[Path, bytes]:
    """What lies there, but for locks, logs and pictures, which are drawn again."""
    passing = {".lock", ".log", ".png", ".svg"}
    return {
        path: path.read_bytes()
        for path in runs.rglob("*")
        if path.is_file() and path.suffix not in passing and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[Path, str, str]:
    """Two arms that learn from the verifier: their folder, and what was said."""
    runs = tmp_path_factory.mktemp("verifier") / "runs"
    return runs, *finish(on_the_verifier(runs, "--json"))


def test_every_arm_stands_in_the_table_with_its_cost(compared):
    runs, out, _ = compared
    table = json.loads(out)
    assert [row["method"] for row in table["rows"]] == ["base", "sft", "rloo (verifier)", "grpo (verifier)"]
    for row in table["rows"][1:]:
        assert row["cost"]["seconds"] > 0
        assert row["cost"]["core_hours"] > 0
        assert row["cost"]["peak_memory_bytes"] > 1e8
    for row in table["rows"][2:]:
        assert row["cost"]["tokens_generated"] > 0
    assert table == written(runs)


def test_comparison_leaves_a_page_its_data_and_pictures(compared):
    folder = compared[0] / "nano"
    page = (folder / "comparison.md").read_text()
    assert "| rloo (verifier)" in page
    assert "2 at a time: 3 stages and 4 evaluations; 0 stages and 0 evaluations were reused.\n" in page
    pictures = [line.partition("](")[2].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert pictures
    assert all((folder / picture).stat().st_size > 1000 for picture in pictures)


def test_recorded_command_makes_the_same_comparison(compared):
    told = written(compared[0])["command"]
    assert told.startswith("posttrain compare --recipe nano --methods rloo,grpo --seeds 0 --set data.sft.rows=256")
    assert "--set data.preference_prompts=null" in told


def test_progress_counts_every_task(compared):
    said = compared[2]
    assert all(f"[{number}/5] " in said for number in range(1, 6))
    assert "5 tasks in " in said


def test_same_command_again_reuses_everything_and_gives_the_same_table(compared):
    runs, _, _ = compared
    before = content(runs)
    started = time.monotonic()
    _, said = finish(on_the_verifier(runs))
    assert time.monotonic() - started < 60
    assert "started" not in said
    assert "service" not in said
    assert content(runs) == before


def test_judge_fills_the_column_of_a_finished_comparison_which_stays_without_it(compared, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(compared[0], runs)
    by_the_verifier = ("--set", "judge.judges=[verifier]")
    out, said = finish(on_the_verifier(runs, *by_the_verifier, "--judge", "--json"))
    assert not any(line.endswith(": started") for line in said.splitlines())
    assert "[3/3] grpo (verifier), seed 0, win rate over sft: verifier " in said
    judged = json.loads(out)
    rates = {row["method"]: row["judge"] and row["judge"]["verifier"] for row in judged["rows"]}
    assert rates.pop("sft") is None
    assert all(0 <= rate["value"] <= 1 and rate["n"] == 8 for rate in rates.values())
    assert len(list((runs / "judge").glob("*.json"))) == 3
    out, said = finish(on_the_verifier(runs, *by_the_verifier, "--json"))
    assert "service" not in said
    assert json.loads(out) == judged
    assert not _below(runs)


def test_dry_run_of_a_finished_comparison_says_that_nothing_is_left(compared):
    out, _ = finish(on_the_verifier(compared[0], "--dry-run"))
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == ["finished"] * 5
    assert lines[-1] == "nothing is left to do"


def test_nothing_outlives_a_comparison(compared):
    assert not _below(compared[0])


def _below(runs: Path) -> list[psutil.Process]:
    """Workers and services that work on `runs`."""
    found = []
    for process in psutil.process_iter():
        try:
            known = [*process.cmdline(), *process.environ().values()]
            if any(str(runs) in text for text in known) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("calm") / "runs"
    finish(on_pairs(runs))
    return runs


def _start(arguments: list[str]) -> subprocess.Popen[str]:
    # What runs in a shell's background ignores Ctrl-C, and so would what it starts.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heeds,
    )


def _wait_for_steps(process: subprocess.Popen[str], trained: Path, steps: int) -> None:
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and process.poll() is None:
        for path in trained.glob("*/metrics.jsonl"):
            if len(path.read_text().splitlines()) >= steps:
                return
        time.sleep(0.02)
    raise AssertionError(f"{trained.name} did not get that far")


def _finished(runs: Path) -> dict[Path, tuple[bytes, int]]:
    """The provenance of every finished stage, and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in runs.rglob("nano/*/*/provenance.json")}


def _wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def numbers(table: dict) -> dict:
    """All but what it cost and how long it took."""
    rows = [{key: value for key, value in row.items() if key != "cost"} for row in table["rows"]]
    return {**table, "rows": rows, "took": None}


def test_killed_comparison_redoes_only_the_stage_that_trained_and_gives_the_same_table(compared, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(compared[0], runs)
    shutil.rmtree(runs / "nano" / "rloo")
    before = _finished(runs)
    process = _start(on_the_verifier(runs))
    _wait_for_steps(process, runs / "nano" / "rloo", 1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=60)
    _wait_until_gone(started)
    assert not _below(runs)
    assert _finished(runs) == before
    _, said = finish(on_the_verifier(runs))
    assert [line for line in said.splitlines() if line.endswith(": started")] == ["rloo (verifier), seed 0: started"]
    (resumed,) = (json.loads(path.read_text()) for path in runs.rglob("nano/rloo/*/provenance.json"))
    assert resumed["resumed"]
    after = _finished(runs)
    assert {path: after[path] for path in before} == before
    assert numbers(written(runs)) == numbers(written(compared[0]))


@pytest.mark.slow
@pytest.mark.parametrize(("end", "group", "status"), [(signal.SIGKILL, False, -9), (signal.SIGINT, True, 130)])
@pytest.mark.timeout(900)
def test_interrupted_comparison_leaves_no_process_and_redoes_only_the_stage_that_trained(
    undisturbed, tmp_path, end, group, status
):
    runs = tmp_path / "runs"
    process = _start(on_pairs(runs))
    _wait_for_steps(process, runs / "nano" / "ppo", 2)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 3  # a worker and its two services at least
    (os.killpg if group else os.kill)(process.pid, end)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    _wait_until_gone(started)
    assert not _below(runs)
    if end == signal.SIGINT:
        assert said.splitlines()[-1] == "error: interrupted; start the same command again to resume"
        assert "Traceback" not in said
    before = _finished(runs)
    assert {path.parents[1].name for path in before} >= {"base", "sft", "preferences", "rm"}
    assert "ppo" not in {path.parents[1].name for path in before}
    _, said = finish(on_pairs(runs))
    assert "ppo, seed 0: started" in said
    assert not any(f"{stage}, seed 0: started\n" in said for stage in ("sft", "preferences", "rm"))
    after = _finished(runs)
    assert {path: after[path] for path in before} == before
    again, calm = written(runs), written(undisturbed)
    (resumed,) = (read_json(path) for path in runs.rglob("nano/ppo/*/provenance.json"))
    assert resumed["resumed"]
    assert (again["took"]["runs"], calm["took"]["runs"]) == (2, 1)
    assert again["took"]["done"] == calm["took"]["done"]
    assert numbers(again) == numbers(calm)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_reward_model_and_the_verifier_judge_what_was_trained(undisturbed, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed, runs)
    out, _ = finish(on_pairs(runs, "--judge", "--json"))
    judged = json.loads(out)
    assert (judged["judge"]["judges"], judged["judge"]["gold"]) == (["rm", "verifier"], "verifier")
    rates = {row["method"]: row["judge"] for row in judged["rows"]}
    for row in ("base", "dpo", "ppo"):
        assert 0 <= rates[row]["rm"]["value"] <= 1
        assert rates[row]["rm"]["error"]["agreement"]["n"] == 8
    assert len(list((runs / "judge").glob("*.json"))) == 6
