"""Background runs in process: their states, a restart that pays for nothing twice, and the record at the end."""

import json
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient
from tenacity import wait_none

from posttrain.core.errors import RequestError, WorkError
from posttrain.llm_judge.judges import completions
from posttrain.llm_judge.judges.script import Script
from posttrain.llm_judge.records import read_record
from posttrain.llm_judge.running import asking
from posttrain.llm_judge.serving import runs as module
from posttrain.llm_judge.serving.requests import RunRequest, parse
from posttrain.llm_judge.serving.run_files import RunFiles

sys.path.insert(0, str(Path(__file__).parent))
from judge_service import Policy, Reward, Scripted, item, items, judged, refused, served, service, settings, wait

ENDED = ("done", "failed", "cancelled")


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(completions, "_BACK_OFF", wait_none())
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def scripted():
    return Scripted(Script(position_bias=0.7))


@pytest.fixture
def url(scripted: Scripted):
    with served(scripted) as address:
        yield address


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A judge that leaves requests waiting from the seventh on, and settings for two requests to it at once."""
    # What it leaves waiting does not arrive.
    monkeypatch.setattr(asking, "GRACE", 0.2)
    scripted = Scripted(Script(position_bias=0.7))
    scripted.last = 6
    with served(scripted) as url:
        judge = settings(tmp_path, url).judges["scripted"].model_dump() | {"limits": {"concurrency": 2}}
        yield scripted, lambda **more: settings(tmp_path, url, judges={"scripted": judge}, **more)


def submitted(client: TestClient, comparisons: list, **more: object) -> dict:
    response = client.post("/runs", json={"comparisons": comparisons, **more})
    assert response.status_code == 202, response.text
    return response.json()


def run_of(client: TestClient, id: str) -> dict:
    response = client.get(f"/runs/{id}")
    assert response.status_code == 200, response.text
    return response.json()


def ended(client: TestClient, id: str) -> dict:
    return wait(lambda: (run := run_of(client, id))["state"] in ENDED and run, "the run has ended")


def cancelled(client: TestClient, id: str) -> dict:
    response = client.post(f"/runs/{id}/cancel")
    assert response.status_code == 200, response.text
    return response.json()


def test_a_run_is_done_with_the_record_that_everybody_else_reads(url: str, scripted: Scripted, tmp_path: Path):
    with service(settings(tmp_path, url)) as client:
        asked = submitted(client, items(8), generator_1="old", generator_2="new")
        assert asked["state"] in ("queued", "running")
        assert (asked["comparisons"], asked["judge"], asked["protocol"]) == (8, "scripted", "alpaca")
        run = ended(client, asked["id"])
        assert (run["state"], run["error"]) == ("done", None)
        assert asked["created"] == run["created"] <= run["started"] <= run["ended"]
        progress = run["progress"]
        assert (progress["games"], progress["done"], progress["asked"], progress["failed"]) == (16, 16, 16, 0)
        assert run["cost"] == pytest.approx(progress["cost"])
        # The same as when it is waited for, from the store.
        answer = judged(client, *items(8))
        assert answer["usage"]["asked"] == 0
        assert run["rates"] == answer["rates"]
        assert scripted.asked == 16
        record = run["result"]
        assert record["rates"]["win_rate"] == pytest.approx(answer["rates"]["win_rate"])
        assert [record[side]["name"] for side in "ab"] == ["old", "new"]
        path = tmp_path / "records" / f"{record['id']}.json"
        assert read_record(path) == record
        assert len(path.with_suffix(".jsonl").read_text().splitlines()) == 16
        summary = client.get("/runs").json()["runs"]
        assert [(one["id"], one["state"]) for one in summary] == [(asked["id"], "done")]


def test_the_same_request_is_the_same_run_and_another_is_another(url: str, scripted: Scripted, tmp_path: Path):
    with service(settings(tmp_path, url)) as client:
        first = ended(client, submitted(client, items(3))["id"])
        assert submitted(client, items(3), judge="scripted", protocol="alpaca") == first
        others = [
            submitted(client, items(3)[::-1])["id"],
            submitted(client, items(3), protocol="arena_hard")["id"],
            submitted(client, items(3), generator_2="new")["id"],
            submitted(client, items(3), replicates=2)["id"],
            submitted(client, items(3), stop_when_clear=True)["id"],
        ]
        assert len({first["id"], *others}) == 6
        for id in others:
            assert ended(client, id)["state"] == "done"
        newest = [one["id"] for one in client.get("/runs", params={"limit": 2}).json()["runs"]]
        assert newest == others[:-3:-1]
        assert client.get("/runs", params={"limit": 0}).status_code == 400
    # alpaca, arena_hard and the second opinions: what is equal was asked once.
    assert scripted.asked == 3 * 6


def after_six(client: TestClient, id: str) -> dict:
    """The run when six of its games are judged and the next two wait."""
    return wait(lambda: (run := run_of(client, id))["progress"]["done"] == 6 and run, "six are judged")


def games_counted() -> float:
    labels = {"judge": "scripted", "outcome": "asked"}
    return REGISTRY.get_sample_value("posttrain_judge_games_total", labels) or 0.0


def test_a_run_that_goes_on_tells_its_progress_and_its_rates_so_far(waiting):
    scripted, options = waiting
    counted = games_counted()
    with service(options()) as client:
        id = submitted(client, items(10))["id"]
        run = after_six(client, id)
        assert run["state"] == "running"
        assert (run["progress"]["games"], run["progress"]["asked"]) == (20, 6)
        assert run["cost"] == pytest.approx(run["progress"]["cost"])
        assert run["cost"] > 0
        assert run["result"] is run["ended"] is None
        # And everybody who looks at the metrics.
        assert games_counted() - counted == 6
        # Of three pairs, or of two: one of which an order is still to be asked is not among them, nor unparsed.
        rates = wait(lambda: (found := run_of(client, id)["rates"]) and found["n_total"] > 1 and found, "of two pairs")
        assert rates["n_total"] <= 3
        assert rates["bias"]["unparsed"]["value"] == 0
        scripted.last = None
        assert ended(client, id)["rates"]["n_total"] == 10


def test_a_restart_goes_on_where_the_last_service_was(waiting):
    scripted, options = waiting
    with service(options()) as client:
        running, queued = (submitted(client, chosen)["id"] for chosen in (items(10), items(12)[10:]))
        after_six(client, running)
        assert run_of(client, queued)["state"] == "queued"
    scripted.last = None
    with service(options()) as client:
        first, second = (ended(client, id) for id in (running, queued))
        assert (first["state"], first["progress"]["stored"], second["state"]) == ("done", 6, "done")
        assert first["ended"] <= second["started"]
        # Of all judgements, those before the restart too.
        assert first["cost"] > first["progress"]["cost"]
    assert scripted.answered == 24
    with service(options()) as client:
        assert run_of(client, running) == first
    assert scripted.answered == 24


def test_a_cancelled_run_begins_nothing_more_and_the_same_request_goes_on(waiting):
    scripted, options = waiting
    with service(options()) as client:
        running, queued = (submitted(client, chosen)["id"] for chosen in (items(10), items(12)[10:]))
        after_six(client, running)
        assert cancelled(client, queued)["state"] == "cancelled"
        run = cancelled(client, running)
        assert (run["state"], run["progress"]["done"]) == ("cancelled", 6)
        assert run["rates"]["n_total"] in (2, 3)
        wait(lambda: not client.app.app.state.runs._workers, "it has ended")
        assert scripted.asked == 8
        assert cancelled(client, running) == run_of(client, running) == run
    scripted.last = None
    with service(options()) as client:
        assert run_of(client, running)["state"] == "cancelled"
        assert submitted(client, items(10))["state"] in ("queued", "running")
        done = ended(client, running)
        assert (done["state"], done["progress"]["stored"]) == ("done", 6)
        assert cancelled(client, running)["state"] == "done"
    assert scripted.answered == 20


def test_a_run_that_is_cancelled_before_its_match_has_begun_asks_nothing(url, scripted, tmp_path, monkeypatch):
    def slowed(name: str, seconds: float) -> None:
        plain = getattr(RunFiles, name)
        monkeypatch.setattr(RunFiles, name, lambda *given: (time.sleep(seconds), plain(*given))[1])

    # The match would begin while the end is being written down.
    slowed("request", 0.3)
    slowed("end", 0.6)
    with service(settings(tmp_path, url)) as client:
        run = cancelled(client, submitted(client, items(10))["id"])
        assert run["state"] == "cancelled"
        wait(lambda: not client.app.app.state.runs._workers, "it has ended")
        assert run_of(client, run["id"])["state"] == "cancelled"
    assert scripted.asked == 0


def test_what_was_in_flight_when_a_run_was_cancelled_counts_once_it_is_there(waiting, monkeypatch):
    monkeypatch.setattr(asking, "GRACE", 10.0)
    scripted, options = waiting
    with service(options()) as client:
        id = submitted(client, items(10))["id"]
        after_six(client, id)
        wait(lambda: scripted.at_once == 2, "two are in flight")
        told = cancelled(client, id)
        assert (told["state"], told["progress"]["asked"]) == ("cancelled", 6)
        scripted.last = 8
        wait(lambda: not client.app.app.state.runs._workers, "it has ended")
        run = run_of(client, id)
        assert (run["state"], run["progress"]["asked"], run["rates"]["n_total"]) == ("cancelled", 8, 4)
        assert run["cost"] == pytest.approx(run["progress"]["cost"])
        assert run["cost"] > told["cost"]
    with service(options()) as client:
        assert run_of(client, id) == run


def test_a_run_that_is_asked_for_again_while_it_ends_is_played_again(waiting):
    scripted, options = waiting
    with service(options()) as client:
        id = submitted(client, items(10))["id"]
        after_six(client, id)
        assert cancelled(client, id)["state"] == "cancelled"
        assert submitted(client, items(10))["state"] in ("queued", "running")
        scripted.last = None
        assert ended(client, id)["state"] == "done"
    assert scripted.answered == 20


def test_a_run_whose_judge_fails_says_so_and_is_begun_again_by_the_same_request(url, scripted, tmp_path):
    with service(settings(tmp_path, url)) as client:
        scripted.refusal = 401
        failed = ended(client, submitted(client, items(4))["id"])
        assert failed["state"] == "failed"
        assert "status 401" in failed["error"]
        assert failed["result"] is None
        scripted.refusal = 400
        submitted(client, items(4))
        some = wait(lambda: (run := run_of(client, failed["id"]))["error"] != failed["error"] and run, "it ended again")
        some = ended(client, some["id"])
        assert "8 games have no answer, the first, of comparisons[0], because judge 'scripted' refused" in some["error"]
        scripted.refusal = None
        submitted(client, items(4))
        assert wait(lambda: run_of(client, failed["id"])["state"] == "done", "it is done")
    # Without a record of what was not finished.
    assert len(list((tmp_path / "records").glob("*.json"))) == 1


def test_answers_of_policies_are_generated_once_for_a_run(waiting):
    scripted, options = waiting
    policy = Policy()
    asked = [item(number, output_2={"policy": "sft"}) for number in range(10)]
    with served(policy.app) as address:
        with service(options(policies={"sft": address})) as client:
            id = submitted(client, asked)["id"]
            after_six(client, id)
        scripted.last = None
        with service(options(policies={"sft": address})) as client:
            run = ended(client, id)
    assert len(policy.bodies) == 10
    assert scripted.answered == 20
    assert (run["result"]["b"]["name"], run["result"]["b"]["kind"]) == ("sft", "url")
    assert run["result"]["a"]["kind"] == "given"


def test_a_run_that_lacks_an_answer_has_failed_and_judged_the_others(url: str, tmp_path: Path):
    policy = Policy()
    with served(policy.app) as address, service(settings(tmp_path, url, policies={"sft": address})) as client:
        asked = [
            item(0, output_1={"policy": "sft"}),
            item(1, instruction="refuse", output_1={"policy": "sft"}),
            item(2),
        ]
        run = ended(client, submitted(client, asked)["id"])
    assert run["state"] == "failed"
    assert "1 comparisons lack an answer, the first being comparisons[1]: policy 'sft' refused" in run["error"]
    assert run["rates"]["n_total"] == 2


def test_too_many_waiting_runs_are_503_and_each_judge_plays_one_at_a_time(waiting):
    scripted, options = waiting
    with service(options(max_queued_runs=2)) as client:
        ids = [submitted(client, items(10))["id"]]
        after_six(client, ids[0])
        ids += [submitted(client, [item(run)])["id"] for run in (100, 101)]
        assert refused(client, 503, {"comparisons": [item(102)]}, "/runs")["code"] == "overloaded"
        assert [run_of(client, id)["state"] for id in ids] == ["running", "queued", "queued"]
        # What is there already needs no place.
        assert submitted(client, [item(101)])["id"] == ids[2]
        scripted.last = None
        assert [ended(client, id)["state"] for id in ids] == ["done"] * 3
        assert submitted(client, [item(102)])["state"] in ("queued", "running")


def test_a_run_of_another_judge_does_not_wait(waiting):
    _, options = waiting
    with served(Reward().app) as address:
        judges = {name: one.model_dump() for name, one in options().judges.items()}
        plain = options()
        both = plain.model_copy(
            update={"judges": settings(Path(), "", judges=judges | {"rm": {"reward": {"url": address}}}).judges}
        )
        with service(both) as client:
            first = submitted(client, items(10))["id"]
            quick = ended(client, submitted(client, items(10), judge="rm")["id"])
            assert (quick["state"], quick["protocol"]) == ("done", None)
            assert run_of(client, first)["state"] == "running"


def test_a_judge_that_became_another_fails_the_runs_that_were_asked_of_the_first(waiting):
    scripted, options = waiting
    with service(options()) as client:
        id = submitted(client, items(10))["id"]
    scripted.last = None
    judge = options().judges["scripted"].model_dump()
    judge["chat"]["temperature"] = 1.0
    changed = options().model_copy(update={"judges": settings(Path(), "", judges={"scripted": judge}).judges})
    with service(changed) as client:
        run = ended(client, id)
        assert run["state"] == "failed"
        assert "has become another" in run["error"]
        other = submitted(client, items(10))["id"]
        assert other != id
        assert ended(client, other)["state"] == "done"


def test_a_run_whose_judge_the_settings_lack_waits_until_they_have_it_again(waiting):
    scripted, options = waiting
    with service(options()) as client:
        id = submitted(client, items(10))["id"]
    other = options().judges["scripted"].model_copy()
    with service(options().model_copy(update={"judges": {"other": other}})) as client:
        assert run_of(client, id)["state"] == "queued"
    scripted.last = None
    with service(options()) as client:
        assert ended(client, id)["state"] == "done"


def test_a_run_may_stop_as_soon_as_it_is_clear(tmp_path: Path):
    # The judge says that the longer one is better, which is always B.
    scripted = Scripted(Script(length_bias=20.0, length_scale=1.0))
    asked = [item(n, output_2=f"another {n}, and a good deal longer") for n in range(200)]
    with served(scripted) as url, service(settings(tmp_path, url)) as client:
        run = ended(client, submitted(client, asked, stop_when_clear=True)["id"])
    assert run["state"] == "done"
    assert run["result"]["ended"] == "clear"
    assert run["result"]["sequential"]["better"] == "b"
    assert run["result"]["sequential"]["prompts"] < 200
    assert scripted.asked < 400


def test_money_that_is_spent_fails_a_run_and_keeps_what_was_judged(url: str, scripted: Scripted, tmp_path: Path):
    judge = settings(tmp_path, url).judges["scripted"].model_dump()
    poor = {"scripted": judge | {"limits": {"max_cost": 0.005, "concurrency": 1}}}
    with service(settings(tmp_path, url, judges=poor)) as client:
        run = ended(client, submitted(client, items(40))["id"])
        assert run["state"] == "failed"
        assert "the money for judge 'scripted' is spent" in run["error"]
        asked = scripted.asked
        assert 0 < asked < 80
    with service(settings(tmp_path, url)) as client:
        # The limit is none of what defines the judge: the same run.
        assert submitted(client, items(40))["id"] == run["id"]
        assert ended(client, run["id"])["progress"]["stored"] == asked


def test_a_run_whose_end_cannot_be_written_has_failed_and_goes_on_after_a_restart(
    url: str, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(folder, played, record):
        raise WorkError("no space left")

    with monkeypatch.context() as patch, service(settings(tmp_path, url)) as client:
        patch.setattr(module, "write_record", full)
        run = ended(client, submitted(client, items(4))["id"])
        assert (run["state"], run["error"]) == ("failed", "no space left")
        # The judge plays on.
        assert ended(client, submitted(client, items(2))["id"])["state"] == "failed"
    with service(settings(tmp_path, url)) as client:
        assert ended(client, run["id"])["state"] == "done"
    assert scripted.asked == 8


def test_an_unknown_run_is_404(url: str, tmp_path: Path):
    with service(settings(tmp_path, url)) as client:
        for response in (client.get("/runs/nix"), client.post("/runs/nix/cancel")):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "run_not_found"


def test_a_folder_of_runs_is_for_one_service(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOCK_PATIENCE", 0.1)
    with (
        service(settings(tmp_path, url)),
        pytest.raises(RequestError, match="another judge service uses"),
        service(settings(tmp_path, url)),
    ):
        raise AssertionError("two services have one folder")
    with service(settings(tmp_path, url)) as client:
        assert client.get("/runs").status_code == 200


def test_a_run_whose_files_are_broken_is_passed_over_and_told(url: str, tmp_path: Path, caplog):
    with service(settings(tmp_path, url)) as client:
        good, bad = (ended(client, submitted(client, [item(number)])["id"])["id"] for number in (0, 1))
    (tmp_path / "runs" / bad / "run.json").write_text('{"summary": 1}')
    with service(settings(tmp_path, url)) as client:
        assert [run["id"] for run in client.get("/runs").json()["runs"]] == [good]
    assert f"{bad}/run.json" in caplog.text


def test_what_is_kept_of_a_request_is_the_request():
    talk = {"questions": ["One?", "Two?"], "output_1": ["a", ""], "output_2": {"policy": "sft"}, "human": 0.5}
    talk |= {"history": [{"role": "system", "content": "be brief"}], "reference": "r", "cut_1": True}
    body = json.dumps({"comparisons": [talk, item()], "replicates": 2, "generator_1": "old"}).encode()
    request = parse(RunRequest, body)
    assert parse(RunRequest, request.model_dump_json(exclude_defaults=True).encode()) == request


def removed(client: TestClient, id: str) -> tuple[int, dict]:
    response = client.delete(f"/runs/{id}")
    return response.status_code, response.json()


def test_a_run_that_has_ended_is_removed_with_its_files_and_not_with_what_was_judged(
    url: str, scripted: Scripted, tmp_path: Path
):
    with service(settings(tmp_path, url)) as client:
        kept, gone = (ended(client, submitted(client, items(count))["id"]) for count in (2, 3))
        assert removed(client, gone["id"]) == (200, {"id": gone["id"], "deleted": True})
        assert client.get(f"/runs/{gone['id']}").status_code == 404
        status, error = removed(client, gone["id"])
        assert (status, error["error"]["code"]) == (404, "run_not_found")
        assert [one["id"] for one in client.get("/runs").json()["runs"]] == [kept["id"]]
        assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()) == [kept["id"]]
        assert (tmp_path / "records" / f"{gone['result']['id']}.json").exists()
    with service(settings(tmp_path, url)) as client:
        assert client.get(f"/runs/{gone['id']}").status_code == 404
        # The same request is a new run, which pays for nothing.
        again = ended(client, submitted(client, items(3))["id"])
        assert (again["id"], again["progress"]["asked"]) == (gone["id"], 0)
        assert again["created"] > gone["created"]
    assert scripted.asked == 2 * 3


def test_a_run_that_has_not_ended_is_not_removed(waiting: tuple, tmp_path: Path):
    scripted, settings_of = waiting
    with service(settings_of()) as client:
        playing, queued = submitted(client, items(8))["id"], submitted(client, items(4))["id"]
        wait(lambda: scripted.asked > 6, "requests wait")
        for id in (playing, queued):
            status, error = removed(client, id)
            assert (status, error["error"]["code"]) == (409, "run_not_ended")
            cancelled(client, id)
        assert removed(client, queued)[0] == 200
        # What is in flight may still arrive.
        wait(lambda: removed(client, playing)[0] == 200, "the run can be removed")
        assert client.get("/runs").json()["runs"] == []
    assert not list((tmp_path / "runs").glob("*/"))


def test_a_removal_that_was_cut_off_leaves_no_end_to_the_next_run(url: str, tmp_path: Path):
    with service(settings(tmp_path, url)) as client:
        id = ended(client, submitted(client, items(2))["id"])["id"]
    files = RunFiles(tmp_path / "runs" / id)
    beginning, request = files.beginning(), files.request()
    (files.folder / "run.json").unlink()
    with service(settings(tmp_path, url)) as client:
        assert client.get(f"/runs/{id}").status_code == 404
    files.create(beginning, request)
    assert files.outcome() is None
