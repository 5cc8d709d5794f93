"""`posttrain judge run`: two sets of answers to a record, through a scripted judge whose verdicts are known."""

import json
import math
import os
import signal
import sys
from pathlib import Path

import pytest
from tenacity import wait_none

from posttrain.core import cli
from posttrain.core.files import read_json, read_jsonl, write_jsonl
from posttrain.llm_judge.commands import judge_choice
from posttrain.llm_judge.judges import completions
from posttrain.llm_judge.judges.script import Script

sys.path.insert(0, str(Path(__file__).parent))
from judge_commands import StubServer, declare, refusal, scripted
from judge_service import served


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty folder to work in, without keys, and retries that do not wait."""
    declare(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "POSTTRAIN_API_KEY", "REWARD_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(completions, "_BACK_OFF", wait_none())


@pytest.fixture
def run(capsys):
    def run(*arguments):
        """The exit status, the last line of standard output as JSON, and what people are told."""
        status = cli.run(["judge", "run", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        return status, json.loads(lines[-1]) if lines else None, captured.err

    return run


@pytest.fixture
def judge(tmp_path):
    with served(scripted(tmp_path / "log.jsonl")) as url:
        yield url


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """A judge that is never asked, and its log."""
    log = tmp_path_factory.mktemp("idle") / "log.jsonl"
    with served(scripted(log)) as url:
        yield url, log


def answers(name, qualities, **more):
    """AlpacaEval's file of a model whose answers are worth so much."""
    rows = [
        {"instruction": f"Say {number}.", "output": f"Of quality {quality}", "generator": name, **more}
        for number, quality in enumerate(qualities)
    ]
    write_jsonl(Path(f"{name}.jsonl"), rows)
    return f"{name}.jsonl"


def requests():
    """How many the scripted judge was sent."""
    return len(read_jsonl(Path("log.jsonl"), allow_empty=True))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_two_files_of_answers(run, judge):
    a, b = answers("old", [0] * 10), answers("new", [2] * 7 + [-2] * 3)
    status, record, said = run(a, b, "--judge", judge)
    assert status == 0
    assert "20 games: 0 stored, 20 to ask" in said
    # The judge's log-odds are the difference in quality, and it has no bias.
    assert record["rates"]["win_rate"] == pytest.approx(100 * (0.7 * sigmoid(2) + 0.3 * sigmoid(-2)), abs=1e-4)
    assert (record["rates"]["n_wins"], record["rates"]["n_losses"]) == (7, 3)
    assert record["rates"]["bias"]["consistency"]["value"] == 1
    assert [(record[side]["name"], record[side]["kind"]) for side in "ab"] == [("old", "file"), ("new", "file")]
    assert record["judge"]["name"].startswith("scripted-alpaca-")
    written = Path(record.pop("record"))
    assert written == Path("runs/judge") / f"{record['id']}.json"
    assert read_json(written) == record
    assert len(read_jsonl(written.with_suffix(".jsonl"))) == 20


def test_the_same_question_is_asked_once_and_has_one_record(run, judge):
    a, b = answers("old", [0] * 6), answers("new", [1] * 6)
    _, first, _ = run(a, b, "--judge", judge)
    asked = requests()
    _, again, said = run(a, b, "--judge", judge)
    assert requests() == asked == 12
    assert "12 stored, 0 to ask" in said
    assert (again["id"], again["rates"], again["annotations"]) == (first["id"], first["rates"], first["annotations"])
    assert again["games"]["stored"] == 12
    # More of the same asks for the rest only.
    _, more, _ = run(answers("old", [0] * 8), answers("new", [1] * 8), "--judge", judge)
    assert requests() == 16
    assert more["id"] != first["id"]
    assert len(list(Path("runs/judge").glob("*.json"))) == 2


def test_a_file_against_itself_is_even(run, judge):
    a = answers("one", [0, 1, 2, 3])
    _, record, _ = run(a, a, "--judge", judge)
    assert record["rates"]["win_rate"] == pytest.approx(50)
    assert (record["a"]["name"], record["b"]["name"]) == ("one (A)", "one (B)")


@pytest.mark.parametrize("protocol", ["arena_hard", "mt_bench"])
def test_protocols_with_a_figure_of_their_own(run, judge, protocol):
    _, record, said = run(
        answers("old", [0] * 4), answers("new", [3, 3, 3, -3]), "--judge", judge, "--protocol", protocol
    )
    assert record["score"]["kind"] == protocol
    # Three of the four win in both orders; for Arena-Hard every verdict is a strong one.
    own = record["score"]["score"] if protocol == "arena_hard" else record["score"]["win_rate"]["overall"]["value"]
    assert own == pytest.approx(75)
    assert ("Arena-Hard score" if protocol == "arena_hard" else "MT-Bench win rate") in said


def mt_bench_files():
    write_jsonl(
        Path("question.jsonl"),
        [
            {"question_id": 81, "category": "math", "turns": ["Add up.", "And again."]},
            {"question_id": 82, "category": "writing", "turns": ["Think of a bird.", "And of another."]},
        ],
    )
    for name, quality in (("old", 0), ("new", 4)):
        rows = [
            {"question_id": n, "model_id": name, "choices": [{"index": 0, "turns": [f"{n} quality {quality}"] * 2}]}
            for n in (82, 81)
        ]
        write_jsonl(Path(f"{name}.jsonl"), rows)
    return "old.jsonl", "new.jsonl", "--prompts", "question.jsonl"


def test_grades_of_mt_benchs_questions_by_category_and_turn(run, judge):
    status, record, said = run(*mt_bench_files(), "--judge", judge, "--protocol", "mt_bench_grade")
    assert status == 0
    assert record["rates"] is None
    assert (record["score"]["kind"], record["games"]["total"]) == ("grades", 8)
    assert set(record["score"]["b"]["by_category"]) == {"math", "writing"}
    assert set(record["score"]["b"]["by_turn"]) == {"1", "2"}
    assert record["score"]["b"]["overall"]["value"] == 10
    assert record["score"]["difference"]["value"] > 2
    assert "grade of B" in said
    assert "turn 2" in said


def test_pairs_of_a_conversation_are_judged_turn_by_turn(run, judge):
    _, record, _ = run(*mt_bench_files(), "--judge", judge, "--protocol", "mt_bench")
    assert record["score"]["wins"] == 4
    assert {one["turn"] for one in record["score"]["win_rate"]["by_category_and_turn"]} == {1, 2}
    rows = read_jsonl(Path(record["record"]).with_suffix(".jsonl"))
    assert {row["prompt_id"] for row in rows} == {"81", "82"}


def test_missing_answers_of_a_file_are_told_or_left_out(run, judge):
    a, b = answers("old", [0] * 5), answers("new", [1] * 3)
    status, _, said = run(a, b, "--judge", judge)
    assert status == 2
    assert "B (new.jsonl) has no answer to 2 of 5 prompts: 'Say 3.', 'Say 4.'; add them, or" in said
    status, record, said = run(a, b, "--judge", judge, "--allow-missing")
    assert (status, record["prompts"]) == (0, 3)
    assert "'Say 4.'; left out" in said


def test_the_order_of_the_prompts_is_drawn(run, judge):
    a, b = answers("old", [0] * 30), answers("new", [1] * 30)

    def prompts(seed):
        _, record, _ = run(a, b, "--judge", judge, "--limit", 5, "--seed", seed)
        return [row["instruction"] for row in read_jsonl(Path(record["record"]).with_suffix(".jsonl"))[::2]]

    assert len(set(prompts(0))) == 5
    assert prompts(0) == prompts(0) != prompts(1)
    assert prompts(0) != [f"Say {number}." for number in range(5)]


def test_a_clear_match_ends_early(run, judge):
    a, b = answers("old", [0] * 300), answers("new", [4] * 300)
    status, record, said = run(a, b, "--judge", judge, "--stop-when-clear", "--concurrency", 4)
    assert (status, record["ended"]) == (0, "clear")
    assert record["sequential"]["prompts"] == record["rates"]["n_total"] < 200
    assert requests() < 500
    assert "warning: Stopped as clear after" in said


def test_a_dry_run_asks_nothing_and_leaves_nothing(run, judge):
    a, b = answers("old", [0] * 5), answers("new", [1] * 5)
    status, estimate, said = run(a, b, "--judge", judge, "--dry-run", "--price-in", 2, "--price-out", 8)
    assert (status, estimate["games"], estimate["to_ask"]) == (0, 10, 10)
    assert estimate["cost"] > 0
    assert "10 to ask" in said
    assert requests() == 0
    assert not Path("runs").exists()


def test_a_dry_run_counts_both_orders_of_answers_that_are_to_be_generated(run, judge):
    answers("asked", [0] * 3)
    for name in ("one", "two"):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps({"name": name}))
    _, estimate, _ = run("one", "two", "--prompts", "asked.jsonl", "--judge", judge, "--dry-run")
    assert (estimate["games"], estimate["to_ask"]) == (6, 6)


def test_money_that_is_spent_ends_it_without_a_record(run, judge):
    a, b = answers("old", [0] * 20), answers("new", [1] * 20)
    priced = ["--price-in", 1000, "--price-out", 1000, "--concurrency", 1]
    status, record, said = run(a, b, "--judge", judge, *priced, "--max-cost", 2)
    assert (status, record["ended"], record["finished"], record["record"]) == (1, "budget", False, None)
    assert 0 < record["games"]["asked"] < 40
    assert 0 < record["spent"]["cost"] <= 2
    assert "warning: Not finished" in said
    assert "a larger --max-cost goes on" in said
    assert not list(Path("runs/judge").glob("*.json"))
    asked = requests()
    status, record, _ = run(a, b, "--judge", judge, *priced)
    assert (status, record["games"]["stored"]) == (0, asked)
    assert record["annotations"]["cost"] > record["spent"]["cost"] > 0


def test_a_game_without_an_answer_fails_the_run_and_the_rest_is_kept(run, judge):
    a, b = answers("old", [0] * 4), answers("new", [1, 1, "broken", 1])
    status, record, said = run(a, b, "--judge", judge)
    assert (status, record["games"]["failed"], record["games"]["asked"]) == (1, 2, 6)
    assert "2 games have no answer" in said
    assert "The same command asks only these again" in said
    assert record["record"] is None
    assert not list(Path("runs/judge").glob("*.json"))


def test_a_signal_ends_it_in_order_and_the_same_command_goes_on(run, tmp_path):
    app, seen = scripted(tmp_path / "log.jsonl", latency=0.01), []

    async def interrupting(scope, receive, send):
        seen.append(scope["path"])
        if len(seen) == 12:
            os.kill(os.getpid(), signal.SIGINT)
        await app(scope, receive, send)

    a, b = answers("old", [0] * 30), answers("new", [1] * 30)
    with served(interrupting) as url:
        status, record, said = run(a, b, "--judge", url, "--concurrency", 2)
        assert (status, record["ended"], record["record"]) == (130, "interrupted", None)
        assert "interrupted; the same command goes on from here" in said
        assert 0 < requests() < 20
        # What was in flight was waited for, and is not asked again.
        status, record, _ = run(a, b, "--judge", url)
        assert (status, record["finished"]) == (0, True)
    assert requests() == 60


def test_position_bias_is_in_the_report_and_warned_of(run, tmp_path):
    a, b = answers("old", [0] * 20), answers("new", [0.1] * 20)
    with served(scripted(script=Script(position_bias=2.0))) as url:
        _, record, said = run(a, b, "--judge", url)
    assert record["rates"]["bias"]["consistency"]["value"] == 0
    assert record["rates"]["bias"]["position_log_odds"]["value"] == pytest.approx(-2, abs=1e-6)
    assert "warning: Only 0.0 % of the verdicts survive the swap" in said


def test_human_labels_and_difficulties_in_the_prompts(run, judge):
    a, b = answers("old", [0] * 12), answers("new", [3, -3, 1] * 4)
    prompts = [
        {"prompt": f"Say {number}.", "human": [1, 0, 0.5][number % 3], "difficulty": number % 4} for number in range(12)
    ]
    write_jsonl(Path("prompts.jsonl"), prompts)
    _, record, said = run(a, b, "--judge", judge, "--prompts", "prompts.jsonl")
    assert record["rates"]["bias"]["human"]["share"]["value"] == pytest.approx(2 / 3)
    assert "agreement with people" in said
    assert record["rates"]["length_controlled_win_rate"] is not None
    assert record["drawn"] == {"prompts": "prompts.jsonl", "difficulty": None, "limit": None, "seed": 0}
    for row in prompts:
        del row["difficulty"]
    write_jsonl(Path("prompts.jsonl"), prompts)
    _, plain, _ = run(a, b, "--judge", judge, "--prompts", "prompts.jsonl")
    assert plain["rates"]["length_controlled_win_rate"] is None
    assert read_json(Path(record["record"]))["rates"]["length_controlled_win_rate"] is not None


def test_difficulties_of_conversations_are_of_each_turn_that_is_judged(run, judge):
    asked = [{"questions": [f"Say {number}.", "And again?"], "difficulty": number % 4} for number in range(12)]
    for name, words in (("old", [1] * 12), ("new", [1, 3, 2, 5] * 3)):
        texts = [f"Of quality {number % 3 if name == 'new' else 1}" + " so" * words[number] for number in range(12)]
        rows = [{**each, "outputs": [text, text]} for each, text in zip(asked, texts, strict=True)]
        write_jsonl(Path(f"{name}.jsonl"), rows)
    status, record, said = run("old.jsonl", "new.jsonl", "--judge", judge, "--protocol", "mt_bench")
    assert (status, record["comparisons"], record["rates"]["n_total"]) == (0, 12, 24)
    assert "difficulties are not known" not in said
    assert record["rates"]["length_controlled_win_rate"] is not None


def test_two_difficulties_of_one_instruction_are_refused(run, judge):
    rows = [
        {"questions": ["Say it.", f"And {number}?"], "difficulty": number, "outputs": ["quality 1", "quality 2"]}
        for number in range(2)
    ]
    for name in ("old", "new"):
        write_jsonl(Path(f"{name}.jsonl"), rows)
    status, _, said = run("old.jsonl", "new.jsonl", "--judge", judge, "--protocol", "mt_bench")
    assert status == 2
    assert "the prompts give 'Say it.' two difficulties, " in said
    assert requests() == 0


def policy(prefix="So: "):
    return StubServer(lambda body: prefix + body["messages"][-1]["content"] + f" quality {len(body['messages'])}")


def test_answers_of_a_served_model_are_generated_once(run, judge):
    a = answers("old", [0] * 6)
    stub = policy()
    with served(stub) as url:
        status, record, said = run(a, url, "--judge", judge)
        assert status == 0
        assert "policy: 0 of 6 answers are in" in said
        assert (record["b"]["name"], record["b"]["kind"], record["b"]["where"]) == ("policy", "url", f"{url}/v1")
        assert len(stub.asked) == 6
        assert stub.asked[0].items() >= {"model": "policy", "max_tokens": 512, "temperature": 0.0}.items()
        assert "seed" not in stub.asked[0]
        made_by = record["b"]["made_by"]
        assert made_by["model"] == {"url": f"{url}/v1", "model": "policy", "sha256": None}
        assert made_by["sampling"] == {"max_new_tokens": 512, "temperature": 0.0}
        assert record["a"]["made_by"] is None
        _, again, said = run(a, url, "--judge", judge)
        assert "policy: all answers are in" in said
        assert (len(stub.asked), again["id"]) == (6, record["id"])
        run(a, url, "--judge", judge, "--temperature", 0.7)
    sampled = stub.asked[6:]
    assert len(sampled) == 6
    assert len({body["seed"] for body in sampled}) == 6
    (greedy, _) = sorted(Path("runs/judge/answers").glob("*.jsonl"), key=os.path.getmtime)
    # The file of kept answers is itself a side.
    status, record, _ = run(a, greedy, "--judge", judge)
    assert (status, record["games"]["stored"], record["b"]["name"]) == (0, 12, "policy")


def test_conversations_are_answered_turn_by_turn(run, judge):
    old, _, *prompts = mt_bench_files()
    stub = policy()
    with served(stub) as url:
        run(old, url, *prompts, "--judge", judge, "--protocol", "mt_bench", "--max-new-tokens", 9)
    second = max(stub.asked, key=lambda body: len(body["messages"]))["messages"]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert second[1]["content"] in ("So: Think of a bird. quality 1", "So: Add up. quality 1")
    assert {body["max_tokens"] for body in stub.asked} == {9}
    (kept,) = Path("runs/judge/answers").glob("*.jsonl")
    assert {len(row["outputs"]) for row in read_jsonl(kept)} == {2}


def test_a_prompt_that_a_model_cannot_answer_costs_only_itself(run, judge):
    a, broken = answers("old", [0] * 5), True

    def reply(body):
        bad = broken and body["messages"][-1]["content"] == "Say 3."
        return refusal(400, "too long") if bad else "fine, quality 1"

    stub = StubServer(reply)
    with served(stub) as url:
        status, _, said = run(a, url, "--judge", judge)
        assert status == 1
        assert "policy gave no answer to 1 prompts: 'Say 3.': " in said
        assert "too long" in said
        assert requests() == 0
        broken = False
        assert run(a, url, "--judge", judge)[0] == 0
    assert len(stub.asked) == 6


def test_a_prompt_on_which_the_server_breaks_every_time_costs_only_itself(run, judge):
    a = answers("old", [0] * 5)
    stub = StubServer(
        lambda body: refusal(500, "oh") if body["messages"][-1]["content"] == "Say 3." else "fine, quality 1"
    )
    with served(stub) as url:
        status, _, said = run(a, url, "--judge", judge, "--concurrency", 1)
    assert status == 1
    assert "policy gave no answer to 1 prompts: 'Say 3.': " in said
    (kept,) = Path("runs/judge/answers").glob("*.jsonl")
    assert len(read_jsonl(kept)) == 4


def test_a_server_that_answers_no_prompt_ends_the_generation(run, judge):
    a, stub = answers("old", [0] * 40), StubServer(lambda body: refusal(500, "oh"))
    with served(stub) as url:
        status, _, said = run(a, url, "--judge", judge, "--concurrency", 1)
    assert status == 1
    assert "gave no answer in 8 attempts" in said
    assert len(stub.asked) == 10 * completions.ATTEMPTS


def test_answers_cut_at_their_greatest_length_are_known_as_such(run, judge):
    a = answers("old", [0] * 3)
    with served(StubServer(lambda body: "on and on…")) as url:
        run(a, url, "--judge", judge)
    (kept,) = Path("runs/judge/answers").glob("*.jsonl")
    assert {row["finish_reason"] for row in read_jsonl(kept)} == {"length"}


def test_half_a_kept_answer_is_asked_again(run, judge):
    a, stub = answers("old", [0] * 4), policy()
    with served(stub) as url:
        run(a, url, "--judge", judge)
        (kept,) = Path("runs/judge/answers").glob("*.jsonl")
        content = kept.read_bytes()
        kept.write_bytes(content[: content.rindex(b"outputs")])
        status, _, said = run(a, url, "--judge", judge)
    assert status == 0
    assert "3 of 4 answers are in" in said
    assert len(stub.asked) == 5
    assert len(read_jsonl(kept)) == 4


def test_a_source_of_rewards_as_judge(run):
    async def rewards(scope, receive, send):
        body = json.loads((await receive())["body"] or b"{}")
        items = body.get("items", ())
        scores = [{"rm": float(item["completion"].split()[-1])} for item in items]
        data = json.dumps({"sources": {"rm": "0f" * 32}, **({"scores": scores} if items else {})}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-posttrain-contract", b"1")]})
        await send({"type": "http.response.body", "body": data})

    a, b = answers("old", [0] * 4), answers("new", [1, 1, 2, -1])
    with served(rewards) as url:
        status, record, said = run(a, b, "--judge", "reward", "--reward-url", url)
        assert status == 0, said
        mean = (2 * sigmoid(1) + sigmoid(2) + sigmoid(-1)) / 4
        assert record["rates"]["win_rate"] == pytest.approx(100 * mean)
        assert record["protocol"] is None
        assert record["judge"]["name"].startswith("rm-")
        _, record, _ = run(a, b, "--judge", "reward", "--reward-url", url, "--scale", "verifier")
        assert record["rates"]["win_rate"] == 75
        _, _, said = run(a, b, "--judge", "reward", "--reward-url", url, "--source", "gone")
        assert "has no source 'gone'" in said


def test_a_checkpoint_is_served_only_while_it_has_something_to_answer(run, judge, monkeypatch):
    from posttrain.llm_judge.answers import sides

    started, stub = [], policy()

    class Service:
        def __init__(self, name, arguments, log):
            started.append((name, arguments))

        def __enter__(self):
            self._serving = served(stub)
            self.url = self._serving.__enter__()
            return self

        def __exit__(self, *_):
            self._serving.__exit__(None, None, None)

    monkeypatch.setattr(sides, "SupervisedService", Service)
    folder = Path("runs/nano/ppo/0123abcd/checkpoint")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    a = answers("old", [0] * 3)
    status, record, _ = run(a, folder, "--judge", judge)
    assert status == 0
    assert started == [("policy", ["policy", str(folder)])]
    assert (record["b"]["name"], record["b"]["kind"]) == ("ppo-0123abcd", "checkpoint")
    run(a, folder, "--judge", judge)
    assert len(started) == 1
    # Other weights are another model.
    (folder / "config.json").write_text('{"other": 1}')
    run(a, folder, "--judge", judge)
    assert len(started) == 2


def test_a_key_that_is_refused_is_told_and_nothing_is_written(run, monkeypatch):
    a, b = answers("old", [0]), answers("new", [1])
    with served(StubServer(lambda body: refusal(401, "no"))) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
        status, record, said = run(a, b, "--judge", "gpt-x")
    assert (status, record) == (1, None)
    assert "does not take the key (status 401)" in said
    assert "sk-wrong" not in said


def test_settings_of_the_judge_define_it_and_are_sent(run, monkeypatch):
    a, b = answers("old", [0]), answers("new", [1])
    stub = StubServer(lambda body: "M")
    with served(stub) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
        options = ["--judge-temperature", "none", "--judge-seed", 3, "--judge-max-tokens", 7]
        _, record, _ = run(a, b, "--judge", "gpt-x", *options, "--set", "reasoning_effort=low")
    wanted = {"model": "gpt-x", "seed": 3, "max_tokens": 7, "reasoning_effort": "low"}
    assert stub.asked[0].items() >= wanted.items()
    assert "temperature" not in stub.asked[0]
    assert record["judge"]["identity"]["request"].items() >= wanted.items()
    # It says M in both orders, which is the position and nothing else.
    assert record["warnings"][0].startswith("Only 0.0 % of the verdicts survive the swap")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl", "b.jsonl"], "A: gone.jsonl does not exist; it may be a file of answers, a checkpoint"),
        (["a.jsonl", "~nobody-of-that-name/b.jsonl"], "~nobody-of-that-name/b.jsonl: there is no such home folder"),
        (["a.jsonl", "empty"], "B: empty is no checkpoint; it has no config.json"),
        (["a.jsonl", "other.jsonl"], "answer no prompt in common; they begin with 'Say 0.' and 'Sing.'"),
        (["a.jsonl", "asked.jsonl"], "asked.jsonl has no answer to any of the 2 prompts"),
        (["a.jsonl", "b.jsonl", "--prompts", "other.jsonl"], "a.jsonl has no answer to any of the 1 prompts"),
        (["a.jsonl", "b.jsonl", "--protocol", "alpacca"], "no protocol 'alpacca' (did you mean 'alpaca'?)"),
        (["a.jsonl", "b.jsonl", "--max-cost", "3"], "--max-cost needs the price of 'scripted'"),
        (["a.jsonl", "b.jsonl", "--price-in", "3"], "--price-in and --price-out belong together"),
        (["a.jsonl", "b.jsonl", "--source", "rm"], "--source does not belong to a chat model"),
        (["a.jsonl", "b.jsonl", "--model", "gpt"], "serves no model 'gpt'"),
        (["a.jsonl", "b.jsonl", "--model-a", "gpt"], "--model-a is for an address, and A is a.jsonl"),
        (["a.jsonl", "b.jsonl", "--difficulty", "d.jsonl"], "d.jsonl has no difficulty for 1 of the 2 instructions"),
        (["a.jsonl", "b.jsonl", "--concurrency", "0"], "'concurrency' input should be greater than or equal to 1"),
        (["a.jsonl", "b.jsonl", "--judge-temperature", "hot"], "takes a number or 'none', not 'hot'"),
        (["a.jsonl", "b.jsonl", "--runs", "a.jsonl/runs"], "a.jsonl is a file; name a folder"),
        (["a.jsonl", "b.jsonl", "--set", "temperature=1"], "may not set 'temperature': --judge-temperature does"),
        (["a.jsonl", "b.jsonl", "--set", "messages=[]"], "may not set 'messages': --protocol does"),
        (["empty-model", "empty-model"], "there are no prompts; give some with --prompts"),
        (
            ["a.jsonl", "b.jsonl", "--protocol", "mt_bench_grade", "--stop-when-clear"],
            "mt_bench_grade grades single answers",
        ),
        (
            ["a.jsonl", "b.jsonl", "--protocol", "mt_bench_grade", "--difficulty", "d.jsonl"],
            "--difficulty is for win rates",
        ),
    ],
)
def test_refusals_are_one_line_before_anything_is_asked(run, idle, arguments, message):
    answers("a", [0, 1])
    answers("b", [1, 2])
    write_jsonl(Path("other.jsonl"), [{"prompt": "Sing.", "output": "La."}])
    write_jsonl(Path("asked.jsonl"), [{"prompt": "Say 0."}])
    write_jsonl(Path("d.jsonl"), [{"instruction": "Say 0.", "difficulty": 1}])
    Path("empty").mkdir()
    Path("empty-model").mkdir()
    Path("empty-model/config.json").write_text("{}")
    url, log = idle
    status, record, said = run(*arguments, "--judge", url)
    assert (status, record) == (2, None)
    assert message in said
    assert said.count("error: ") == 1
    assert log.read_bytes() == b""


def test_a_reward_judge_needs_a_service_and_no_protocol(run):
    a, b = answers("old", [0]), answers("new", [1])
    assert "needs a reward service" in run(a, b, "--judge", "reward")[2]
    assert (
        "--protocol does not belong to a source of rewards"
        in run(a, b, "--judge", "reward:x", "--protocol", "alpaca")[2]
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["reward:"], 2, "--judge reward: names no checkpoint"),
        (["reward:/nonexist"], 2, "--judge reward:/nonexist names no checkpoint"),
        (["reward:~nobody-of-that-name/rm"], 2, "there is no such home folder"),
        (["reward:model", "--source", "gsm8k"], 2, "has the source 'rm' only, not 'gsm8k'"),
        (["reward:model", "--reward-url", "http://127.0.0.1:9"], 2, "--reward-url does not belong to"),
        (["reward:model", "--judge-temperature", "0"], 2, "--judge-temperature does not belong to"),
        (["reward:model", "--max-cost", "1"], 2, "--max-cost does not belong to"),
        (["reward:model", "--requests-per-minute", "1"], 2, "--requests-per-minute does not belong to"),
        (["reward:model", "--tokens-per-minute", "1"], 2, "--tokens-per-minute does not belong to"),
        (["reward:model", "--price-in", "1"], 2, "--price-in does not belong to"),
        (["reward:model", "--store", "old.jsonl/store.db"], 1, "old.jsonl"),
        (["reward", "--reward-url", "http://127.0.0.1:9"], 1, "127.0.0.1:9"),
        (["reward", "--reward-url", "http://me:secret@host"], 2, "--reward-url has a user"),
    ],
)
def test_what_is_wrong_with_a_reward_judge_is_told_before_answers_are_generated(
    run, monkeypatch, arguments, status, message
):
    monkeypatch.setattr(judge_choice, "PATIENCE", 0.1)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    stub = policy()
    with served(stub) as url:
        ended, record, said = run(answers("old", [0]), url, "--judge", *arguments)
    assert (ended, record) == (status, None), said
    assert message in said
    assert "secret" not in said
    assert stub.asked == []


def test_a_dry_run_does_not_start_a_reward_model(run, monkeypatch):
    monkeypatch.setattr(judge_choice, "SupervisedService", None)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    a, b = answers("old", [0] * 3), answers("new", [1] * 3)
    status, estimate, _ = run(a, b, "--judge", "reward:model", "--dry-run")
    assert (status, estimate["to_ask"], estimate["cost"]) == (0, 6, 0)
    assert not Path("runs").exists()


def test_a_server_that_is_not_there_is_failed_work(run):
    a, b = answers("old", [0]), answers("new", [1])
    status, _, said = run(a, b, "--judge", "http://127.0.0.1:9")
    assert status == 1
    assert "is the server running?" in said


def test_a_table_for_people(judge, capsys):
    a, b = answers("old", [0] * 4), answers("new", [1] * 4)
    assert cli.run(["judge", "run", a, b, "--judge", judge]) == 0
    shown = capsys.readouterr().out
    assert "new (B) against old (A), judged by scripted-alpaca-" in shown
    lines = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert f"{100 * sigmoid(1):.2f} ± 0.00" in lines["win rate %"]
    assert "4 won, 0 lost, 0 drawn of 4" in lines["discrete win rate %"]
    assert "100.0" in lines["verdicts that survive the swap %"]
    assert "cost unknown" in lines["this run"]
    assert "All of these 4 prompts have the same preference" in shown
    assert "posttrain judge show " in shown.splitlines()[-1]
