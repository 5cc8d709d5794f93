"""`posttrain results publish` over finished runs: what it takes from `compare`, writes, refuses and warns of."""

import json
from pathlib import Path

import pytest
import yaml

from packages.lab.tests.finished_runs import SMALL, change_json, finish, plans_of, read_once
from packages.lab.tests.judged_runs import answered, judge
from posttrain.core.cli import run as command
from posttrain.core.files import atomic_write_json
from posttrain.core.results import append_result
from posttrain.lab.elapsed import FOLDER
from posttrain.lab.evaluations import SETTINGS_FILE, evaluation_keys
from posttrain.lab.plan import Plan
from posttrain.lab.policy_measures import policy_items, policy_key
from posttrain.trainers.stage import StageInputs, resolved_config

COMMIT = "0123456789abcdef"
SETS = ("tuned={}", *SMALL)


@pytest.fixture(autouse=True)
def _light(monkeypatch):
    read_once(monkeypatch)
    monkeypatch.delenv("REWARD_URL", raising=False)
    monkeypatch.setattr("posttrain.lab.plots.draw_plots", lambda folder, table, entries: [])


def trained(root: Path, *overrides: str) -> list[Plan]:
    """Finished runs of two arms and seeds, with all that publishing and joining read of a run."""
    plans = plans_of(root, ["dpo", "ppo"], (0, 1), *overrides)
    finish(plans)
    for plan in plans:
        for stage in plan.stages:
            inputs = StageInputs(run=stage.run, seed=plan.seed, start=stage.start)
            config = resolved_config(stage.method, stage.settings, inputs, stage.identity)
            (stage.run.path / "config.yaml").write_text(yaml.safe_dump(config))
            change_json(stage.run.provenance_path, lambda record: record.update(environment={"git_commit": COMMIT}))
        base = {**plan.base.definition(), "fingerprint": plan.rows[0].identity.fingerprint}
        change_json(plan.rows[0].run.provenance_path, lambda record, base=base: record.update(base))
        for row in plan.rows:
            tasks = dict.fromkeys(plan.recipe.evaluation.tasks, 0)
            change_json(row.run.eval / SETTINGS_FILE, lambda marker, tasks=tasks: marker.update(few_shot=tasks))
            for key in [*evaluation_keys(row, plan.recipe.evaluation), policy_key(row, plan)]:
                append_result(root / "metrics.jsonl", key | {"metrics": {}})
    return plans


def publish(tmp_path: Path, *arguments: str) -> int:
    sets = [part for override in SETS for part in ("--set", override)]
    where = ["--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "results")]
    return command(["results", "publish", *arguments, *where, *sets])


def record(tmp_path: Path, name: str) -> dict:
    return json.loads((tmp_path / "results" / f"{name}.json").read_text())


def methods(tmp_path: Path, name: str) -> list[str]:
    return [row["method"] for row in record(tmp_path, name)["rows"]]


def dirty(plan: Plan, method: str) -> None:
    (stage,) = (stage for stage in plan.stages if stage.method == method)
    change_json(stage.run.provenance_path, lambda record: record.update(environment={"git_commit": f"{COMMIT}+"}))


def test_table_is_published_with_its_command_stages_and_evaluations(tmp_path, capsys):
    trained(tmp_path / "runs")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    assert capsys.readouterr().err == f"published nano-dpo-ppo and 32 evaluations to {tmp_path / 'results'}\n"
    written = record(tmp_path, "nano-dpo-ppo")
    assert methods(tmp_path, "nano-dpo-ppo") == ["base", "sft", "dpo", "ppo"]
    assert written["commands"][0].startswith(
        "posttrain compare --recipe nano --methods dpo,ppo --seeds 0,1 --set 'tuned={}' --set "
    )
    # sft, preferences, rm, dpo, ppo of each seed.
    assert len({stage["fingerprint"] for stage in written["stages"]}) == len(written["stages"]) == 10
    # Three tasks and the measurement, of four rows, on two seeds.
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert len(metrics) == 4 * 4 * 2
    assert {row["config_hash"] for row in metrics} == {row["config_hash"] for row in written["rows"]}


def test_row_of_another_run_is_published_with_its_stages_and_evaluations(tmp_path):
    trained(tmp_path / "runs")
    (other, *_) = trained(tmp_path / "runs", "dpo.beta=0.3")
    joining = other.last.run.path.name
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1", "--row", joining) == 0
    written = record(tmp_path, "nano-dpo-ppo")
    name = f"dpo [{joining[:6]}]"
    assert methods(tmp_path, "nano-dpo-ppo") == ["base", "sft", "dpo", "ppo", name]
    assert f"--row {joining}" in written["commands"][0]
    assert [stage["stage"] for stage in written["stages"]].count("dpo") == 4
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert len([row for row in metrics if row["method"] == name]) == 4 * 2


def test_row_that_was_allowed_another_evaluation_is_published_with_that(tmp_path):
    (other, *_) = trained(tmp_path / "runs", "dpo.beta=0.3", "evaluation.limit=3")
    trained(tmp_path / "runs")
    joining = ("--row", other.last.run.path.name, "--allow", "evaluation.limit")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1", *joining) == 0
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    limits = {row["method"]: row["limit"] for row in metrics if row["task"] == "nano_choice"}
    assert limits == {"base": 4, "sft": 4, "dpo": 4, "ppo": 4, f"dpo [{other.last.run.path.name[:6]}]": 3}


def test_row_of_another_run_that_is_not_measured_says_what_to_run(tmp_path, capsys):
    trained(tmp_path / "runs")
    (other, *_) = trained(tmp_path / "runs", "dpo.beta=0.3")
    policy_items(other.rows[-1], other).unlink()
    joining = other.last.run.path.name
    assert publish(tmp_path, "dpo", "--row", joining) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"dpo [{joining[:6]}], seed 0, is not finished; run: posttrain compare --recipe nano --methods dpo" in said
    assert not (tmp_path / "results").exists()


def test_table_under_a_budget_has_a_record_of_its_own(tmp_path, capsys):
    trained(tmp_path / "runs", "budget.tokens=9000")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1", "--budget", "tokens=9000") == 0
    written = record(tmp_path, "nano-dpo-ppo-tokens-9000")
    assert written["commands"][0].endswith(" --budget tokens=9000")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 2
    assert "is not finished; run: posttrain compare" in capsys.readouterr().err
    assert publish(tmp_path, "dpo", "--budget", "token=9000") == 2
    assert "--budget takes tokens=N or seconds=N" in capsys.readouterr().err


def test_what_the_comparison_took_stands_in_the_record(tmp_path):
    trained(tmp_path / "runs")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    written = record(tmp_path, "nano-dpo-ppo")
    assert written["took"] is None
    counts = {"before": {"stages": 1, "evaluations": 0}, "after": {"stages": 10, "evaluations": 8}}
    run = {"command": written["commands"][0], "jobs": 2, "seconds": 65.0, "complete": True, **counts}
    atomic_write_json(tmp_path / "runs" / "nano" / FOLDER / "run.json", run)
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    said = "Done in 1:05, 2 at a time: 9 stages and 8 evaluations; 1 stage and 0 evaluations were reused."
    assert record(tmp_path, "nano-dpo-ppo")["took"]["sentence"] == said
    assert f"\n\n{said}\n\n" in (tmp_path / "results" / "nano-dpo-ppo.md").read_text()


@pytest.mark.parametrize(
    ("method", "named"),
    [("ppo", ["ppo"]), ("rm", ["ppo"]), ("sft", ["sft", "dpo", "ppo"])],
    ids=lambda value: str(value),
)
def test_rows_of_uncommitted_code_are_named_in_one_line(tmp_path, capsys, method, named):
    plans = trained(tmp_path / "runs")
    dirty(plans[-1], method)
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1", "--json") == 0
    out, said = capsys.readouterr()
    (warning,) = (line for line in said.splitlines() if line.startswith("warning: "))
    assert warning.endswith(f": {', '.join(named)}")
    assert json.loads(out)["uncommitted_code"] == named


def test_what_judges_said_is_published_with_the_command_that_has_them_say_it(tmp_path, capsys):
    plans = trained(tmp_path / "runs")
    answered(plans)
    likes = {"rm": [0.9, 0.8, 0.2, 0.5], "verifier": [1.0, 1.0, 0.0, 0.5]}
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    before = record(tmp_path, "nano-dpo-ppo")
    assert (before["judge"], {row["judge"] for row in before["rows"]}) == (None, {None})
    for plan in plans:
        for row in plan.rows:
            if row.name != "sft":
                judge(row, plan, **likes)
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    written = record(tmp_path, "nano-dpo-ppo")
    assert written["commands"] == [f"{before['commands'][0]} --judge"]
    assert written["judge"]["judges"] == ["rm", "verifier"]
    assert {row["method"]: row["judge"] and row["judge"]["rm"]["value"] for row in written["rows"]} == {
        "base": pytest.approx(0.6),
        "sft": None,
        "dpo": pytest.approx(0.6),
        "ppo": pytest.approx(0.6),
    }
    for path in (tmp_path / "runs").rglob("eval/judge-*.jsonl"):
        path.unlink()
    capsys.readouterr()
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 2
    assert "preferences of judge rm for base" in capsys.readouterr().err


def test_fewer_seeds_are_refused_in_one_line(tmp_path, capsys):
    trained(tmp_path / "runs")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    capsys.readouterr()
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "holds seed 1 of base (" in said
    assert "publish with --seeds 0,1, or take the row out first" in said


def test_retracted_row_needs_a_reason_to_come_back(tmp_path, capsys):
    trained(tmp_path / "runs")
    assert publish(tmp_path, "dpo,ppo", "--seeds", "0,1") == 0
    gone = record(tmp_path, "nano-dpo-ppo")["rows"][2]["config_hash"]
    retract = ["results", "retract", gone[:10], "--to", str(tmp_path / "results"), "--why", "a leak"]
    assert command(retract) == 0
    assert f"retracted {gone[:10]} from nano-dpo-ppo, metrics.json" in capsys.readouterr().err
    again = ("dpo,ppo", "--seeds", "0,1")
    for arguments, told in (
        ((), f"dpo ({gone[:8]}) was retracted: a leak; leave it out, or publish it all the same with --reinstate"),
        (("--reinstate", gone[:8]), "--reinstate HASH and --why REASON go together"),
        (("--why", "no leak"), "--reinstate HASH and --why REASON go together"),
        (("--reinstate", "zzz", "--why", "no leak"), "--reinstate zzz has to begin one retracted row's hash"),
    ):
        assert publish(tmp_path, *again, *arguments) == 2
        assert told in " ".join(capsys.readouterr().err.split())
    assert methods(tmp_path, "nano-dpo-ppo") == ["base", "sft", "ppo"]
    assert publish(tmp_path, *again, "--reinstate", gone[:8], "--why", "no leak") == 0
    assert methods(tmp_path, "nano-dpo-ppo") == ["base", "sft", "dpo", "ppo"]
    assert f"dpo ({gone[:8]}): a leak; published again: no leak" in (tmp_path / "results/nano-dpo-ppo.md").read_text()
