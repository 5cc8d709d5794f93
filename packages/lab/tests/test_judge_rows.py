"""Judging a comparison's rows, by a reward service that the tests play: what is asked, kept, shown, and asked once."""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import respx

from packages.lab.tests.finished_runs import SMALL, read_once
from packages.lab.tests.judged_runs import TASK, answer, answered_runs, by_name
from posttrain.core.cli import run as command
from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError, WorkError
from posttrain.core.files import read_json, read_jsonl
from posttrain.eval_harness.asked import Asked
from posttrain.lab import judge_rows as module
from posttrain.lab.cells import as_json
from posttrain.lab.collect import collect_table, entries_of
from posttrain.lab.judge_matches import judged_items
from posttrain.lab.judge_rows import judge_rows
from posttrain.llm_judge.records import read_record

URL = "http://127.0.0.1:9124"
REFERENCE = {"instructions": [{"id": "case:lower", "kwargs": {}}]}


class Service:
    """A reward service: `rm` likes long answers and takes five off for one that has no end, `verifier` likes those that
    end with an even number. It fails on an answer that says `failing`."""

    def __init__(self, mock):
        self.items, self.models, self.failing = [], [], "failing"
        mock.get(f"{URL}/v1/sources").respond(json={"sources": {"rm": "digest", "verifier": "1"}})
        mock.post(f"{URL}/score").mock(side_effect=self.score)

    def score(self, request):
        asked = json.loads(request.content)
        (source,) = asked["sources"]
        self.items += [{"source": source, **item} for item in asked["items"]]
        scores, errors = [], []
        for index, item in enumerate(asked["items"]):
            text = item["completion"]
            if self.failing in text:
                errors.append({"index": index, "source": source, "message": "it raised"})
            cut = 5.0 if item.get("finish_reason") == "length" else 0.0
            liked = len(text) - cut if source == "rm" else float(text[-1] in "02468")
            scores.append({source: None if self.failing in text else liked})
        answer = {"scores": scores, "sources": {"rm": "digest", "verifier": "1"}, "errors": errors}
        return httpx.Response(200, json=answer)

    @contextmanager
    def run_services(self, plan, logs):
        """In the place of the run's own services."""
        yield self

    def reward(self, model):
        """A client, as RunServices gives one."""
        self.models.append(model)
        return RewardClient(URL, patience=0.1)


@pytest.fixture
def service(monkeypatch):
    read_once(monkeypatch)
    monkeypatch.delenv("REWARD_URL", raising=False)
    monkeypatch.delenv("POLICY_URL", raising=False)
    items = {f"{TASK}/{number}": Asked(f"question {number}?", REFERENCE) for number in range(4)}
    monkeypatch.setattr(module, "asked", lambda task, include_path: items)
    with respx.mock(assert_all_called=False) as mock:
        played = Service(mock)
        monkeypatch.setattr(module, "run_services", played.run_services)
        yield played


def preferences(plan, place: int = -1) -> dict[str, list[float]]:
    """What lies beside a row, by judge."""
    items = read_jsonl(judged_items(plan.rows[place], plan))
    return {judge: [item["scores"][judge] for item in items] for judge in ("rm", "verifier")}


def records(root: Path) -> list[dict]:
    return [read_record(path) for path in sorted((root / "judge").glob("*.json"))]


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class TestPreferences:
    def test_are_the_judges_of_the_row_over_the_sft_policy_by_item(self, tmp_path, service):
        (plan,) = answered_runs(tmp_path, ["dpo-on-policy"])
        answer(plan.reference, ["1", "22", "3", "same"])
        answer(plan.rows[-1], ["12", "22222", "44", "same"])
        judge_rows(entries_of([plan]), tmp_path)
        found = preferences(plan)
        assert found["rm"] == pytest.approx([logistic(1), logistic(3), logistic(1), 0.5])
        # Even or not: 1 against 2, 2 against 2, 3 against 4.
        assert found["verifier"] == [1.0, 0.5, 1.0, 0.5]

    def test_are_of_questions_and_references_of_the_task_and_of_cut_answers_as_such(self, tmp_path, service):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        answer(plan.reference, ["a1", "a2", "a3", "a4"])
        answer(plan.rows[-1], ["b1", "b2", "b3", "b4"], cut=[1])
        judge_rows(entries_of([plan]), tmp_path)
        of_rm = {item["completion"]: item for item in service.items if item["source"] == "rm"}
        assert of_rm["b2"]["finish_reason"] == "length"
        assert of_rm["a2"].get("finish_reason", "stop") == "stop"
        assert of_rm["b2"]["prompt"] == [{"role": "user", "content": "question 1?"}]
        assert all(item["reference"] == REFERENCE for item in service.items)
        assert preferences(plan)["rm"][1] == pytest.approx(logistic(-5))

    def test_of_each_seed_are_by_its_own_reward_model(self, tmp_path, service):
        plans = answered_runs(tmp_path, ["dpo"], (0, 1))
        judge_rows(entries_of(plans), tmp_path)
        assert service.models == [plan.reward_model for plan in plans]
        assert len(set(service.models)) == 2

    def test_each_answer_is_scored_once_however_many_are_compared_with_it(self, tmp_path, service):
        plans = answered_runs(tmp_path, ["dpo", "ppo", "simpo"])
        judge_rows(entries_of(plans), tmp_path)
        scored = [(item["source"], item["completion"], str(item["prompt"])) for item in service.items]
        assert len(scored) == len(set(scored)) == 2 * (5 * 3 + 1)


class TestRecords:
    def test_are_one_a_match_and_judge_with_the_error_against_gold(self, tmp_path, service):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        answer(plan.reference, ["1", "22", "333", "same"])
        answer(plan.rows[-1], ["12", "2", "55555", "same"])
        judge_rows(entries_of([plan]), tmp_path)
        found = {(each["b"]["name"], each["judge"]["identity"]["source"]): each for each in records(tmp_path)}
        assert set(found) == {(row, judge) for row in ("base, seed 0", "dpo, seed 0") for judge in ("rm", "verifier")}
        rm, gold = (found["dpo, seed 0", judge] for judge in ("rm", "verifier"))
        assert rm["a"]["name"] == "sft, seed 0"
        assert (gold["rates"]["win_rate"], gold["rates"]["n_total"]) == (62.5, 4)
        # B A B and a tie against B, three ties: half alike; by chance ½ · ¼ (B) + ¼ · ¾ (ties) = 5/16.
        assert rm["rates"]["bias"]["human"]["kappa"]["value"] == pytest.approx((1 / 2 - 5 / 16) / (1 - 5 / 16))
        assert gold["rates"]["bias"]["human"] is None
        assert rm["rates"]["bias"]["consistency"]["value"] == 1

    def test_table_has_the_same_numbers(self, tmp_path, service):
        plans = answered_runs(tmp_path, ["dpo"], (0, 1))
        judge_rows(entries_of(plans), tmp_path)
        table = collect_table(plans, check=False)
        of_dpo = [each["rates"] for each in records(tmp_path) if each["b"]["name"].startswith("dpo")]
        rates = sorted(
            100 * rate for judge in ("rm", "verifier") for rate in table.win_rates["dpo"][judge].by_seed.values()
        )
        assert rates == pytest.approx(sorted(each["win_rate"] for each in of_dpo))

    def test_table_says_which_judge_and_which_record_each_number_is_from(self, tmp_path, service):
        plans = answered_runs(tmp_path, ["dpo"], (0, 1))
        judge_rows(entries_of(plans), tmp_path)
        table = as_json(collect_table(plans, check=False))
        identities = {judge: {str(plan.seed): plan.judges[judge] for plan in plans} for judge in ("rm", "verifier")}
        assert table["judge"]["identities"] == identities
        assert len(set(identities["rm"].values())) == 2
        rates = {each["id"]: each["rates"]["win_rate"] for each in records(tmp_path)}
        for row in (table["rows"][0], table["rows"][2]):
            for judge, rate in row["judge"].items():
                for seed, by in rate["judged_by"].items():
                    assert by["identity"] == identities[judge][seed]
                    assert rates[by["record"]] == pytest.approx(100 * rate["by_seed"][seed])

    def test_record_that_judging_did_not_note_is_null(self, tmp_path, service):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        judge_rows(entries_of([plan]), tmp_path)
        judged_items(plan.rows[-1], plan).with_suffix(".json").unlink()
        row = as_json(collect_table([plan], check=False))["rows"][2]
        assert row["judge"]["rm"]["judged_by"] == {"0": {"identity": plan.judges["rm"], "record": None}}


class TestOnce:
    def test_what_is_judged_starts_no_service(self, tmp_path, service, monkeypatch):
        plans = answered_runs(tmp_path, ["dpo"])
        judge_rows(entries_of(plans), tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setattr(module, "run_services", None)
        judge_rows(entries_of(plans), tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_what_the_store_has_is_not_asked_again(self, tmp_path, service):
        plans = answered_runs(tmp_path, ["dpo"])
        judge_rows(entries_of(plans), tmp_path)
        first = preferences(plans[0])
        for path in tmp_path.rglob("eval/judge-*.jsonl"):
            path.unlink()
        service.items.clear()
        judge_rows(entries_of(plans), tmp_path)
        assert service.items == []
        assert preferences(plans[0]) == first

    def test_new_rows_and_changed_answers_are_all_that_is_asked(self, tmp_path, service):
        judge_rows(entries_of(answered_runs(tmp_path, ["dpo"])), tmp_path)
        plans = answered_runs(tmp_path, ["dpo", "ppo"])
        answer(plans[0].rows[-1], [*by_name("dpo", 0)[:3], "another one"])
        service.items.clear()
        judge_rows(entries_of(plans), tmp_path)
        assert {item["completion"] for item in service.items} == {
            "another one", "the same", *by_name("ppo", 0), *by_name("sft", 0)
        }  # fmt: skip
        assert not any("dpo" in item["completion"] for item in service.items)


class TestFailure:
    def test_is_told_with_the_row_and_what_was_judged_stays(self, tmp_path, service):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        answer(plan.rows[-1], ["one 1", "failing 2", "three 3", "four 4"])
        with pytest.raises(
            WorkError, match=r"dpo, seed 0, judged by verifier: 2 games have no answer: .*/1 .*it raised"
        ):
            judge_rows(entries_of([plan]), tmp_path)
        assert not judged_items(plan.rows[-1], plan).exists()
        assert judged_items(plan.rows[0], plan).exists()
        assert {each["b"]["name"] for each in records(tmp_path)} == {"base, seed 0"}
        service.items.clear()
        service.failing = "nothing"
        judge_rows(entries_of([plan]), tmp_path)
        gold = [item["completion"] for item in service.items if item["source"] == "verifier"]
        assert sorted(gold) == sorted(["failing 2", by_name("sft", 0)[1]])
        assert judged_items(plan.rows[-1], plan).exists()

    def test_of_answers_to_items_that_the_task_no_longer_has_says_what_to_do(self, tmp_path, service, monkeypatch):
        (plan,) = answered_runs(tmp_path, ["dpo"])
        monkeypatch.setattr(module, "asked", lambda task, include_path: {})
        with pytest.raises(
            RequestError, match=f"item '{TASK}/0' is none that its task has now; evaluate the row again"
        ):
            judge_rows(entries_of([plan]), tmp_path)


class TestCommand:
    """`posttrain compare --judge` over finished runs."""

    SETS = tuple(part for override in ("tuned={}", *SMALL) for part in ("--set", override))

    @pytest.fixture(autouse=True)
    def _no_pictures(self, monkeypatch, service):
        monkeypatch.setattr("posttrain.lab.comparison.draw_plots", lambda folder, table, entries: [])

    def compare(self, root: Path, *arguments: str) -> int:
        return command(["compare", "--methods", "dpo", "--jobs", "1", "--runs", str(root), *self.SETS, *arguments])

    def runs(self, root: Path) -> None:
        for plan in answered_runs(root, ["dpo"]):
            for stage in plan.stages:
                (stage.run.path / "config.yaml").write_text("settings: {}\n")

    def test_fills_the_column_which_then_shows_without_it(self, tmp_path, service, capsys):
        self.runs(tmp_path)
        assert self.compare(tmp_path) == 0
        page = (tmp_path / "nano" / "comparison.md").read_text()
        assert "| judge win rate vs sft | trials |" in page
        assert "--judge" not in read_json(tmp_path / "nano" / "comparison.json")["command"]
        assert (service.items, service.models) == ([], [])

        assert self.compare(tmp_path, "--judge", "--json") == 0
        out, said = capsys.readouterr()
        assert "[2/2] dpo, seed 0, win rate over sft: verifier 0." in said
        judged = json.loads(out.splitlines()[-1])
        assert judged == read_json(tmp_path / "nano" / "comparison.json")
        assert judged["command"].endswith(" --judge")
        assert [row["judge"] is not None for row in judged["rows"]] == [True, False, True]
        assert (
            "| judge win rate vs sft (rm) | judge win rate vs sft (verifier) | trials |"
            in (tmp_path / "nano" / "comparison.md").read_text()
        )

        service.items.clear()
        assert self.compare(tmp_path) == 0
        assert read_json(tmp_path / "nano" / "comparison.json") == judged
        assert service.items == []

    def test_dry_run_says_how_much_is_to_be_judged(self, tmp_path, service, capsys):
        self.runs(tmp_path)
        assert self.compare(tmp_path, "--judge", "--dry-run") == 0
        assert capsys.readouterr().out.splitlines()[-2:] == [
            "nothing is left to do",
            "2 of 2 matches against sft to judge",
        ]
        assert self.compare(tmp_path, "--judge") == 0
        capsys.readouterr()
        assert self.compare(tmp_path, "--judge", "--dry-run", "--json") == 0
        assert json.loads(capsys.readouterr().out)["judge"] == {"judged": 2, "matches": 2}

    def test_recipe_that_names_no_judge_is_refused_in_one_line_before_anything_is_done(self, tmp_path, capsys):
        assert self.compare(tmp_path / "runs", "--judge", "--set", "judge=null") == 2
        said = capsys.readouterr().err
        assert "--judge: recipe nano does not say what is judged; add to it `judge: {task: TASK, judges: [rm," in said
        assert len(said.splitlines()) == 1
        assert not (tmp_path / "runs").exists()
