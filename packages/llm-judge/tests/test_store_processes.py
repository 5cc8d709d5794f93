"""Several processes at one store: nothing acknowledged is lost to kill -9, and no game is asked by two."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from posttrain.llm_judge.store import Store, claims

sys.path.insert(0, str(Path(__file__).parent))
from judged_games import game, judged

PROGRAM = Path(__file__).parent / "judged_games.py"


@contextmanager
def process(*arguments: object):
    """A process of `judged_games.py`; killed at the end if it runs still."""
    command = [sys.executable, PROGRAM, *map(str, arguments)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def keys(*numbers: int) -> list[str]:
    return [judged(game(number))[0].key for number in numbers]


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    path, chance, acknowledged = tmp_path / "store.db", random.Random(6), []
    for start in range(0, 4_000_000, 1_000_000):
        with process("put", path, start, start + 1_000_000) as writer:
            acknowledged.append(writer.stdout.readline().strip())
            time.sleep(chance.uniform(0.02, 0.3))
            writer.send_signal(signal.SIGKILL)
            # A line that the kill cut is no acknowledgement.
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    assert len(acknowledged) > 40
    with Store(path) as store:
        found = store.get(acknowledged)
    assert set(found) == set(acknowledged)
    assert all(judgement.decision.raw == "I say 0.25." for judgement in found.values())
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_two_processes_write_at_once_and_each_judgement_is_new_to_one(tmp_path):
    """Both start on a store that is not there; 100 of their 300 and 300 judgements are the same ones."""
    path = tmp_path / "store.db"
    with process("put_at_once", path, 0, 300) as one, process("put_at_once", path, 200, 500) as other:
        new = [int(writer.communicate()[0]) for writer in (one, other)]
    assert sum(new) == 500
    with Store(path) as store:
        assert len(store.get(keys(*range(500)))) == 500


def test_what_another_process_asks_is_left_to_it_until_it_lets_go(tmp_path):
    path = tmp_path / "store.db"
    with Store(path) as store, process("claim", path, 0, 3) as other:
        assert other.stdout.readline() == "3\n"
        assert store.claim(keys(1, 2, 3)) == set(keys(3))
        other.communicate("go\n")
        assert store.claim(keys(1, 2, 3)) == set(keys(1, 2))


def test_the_claims_of_a_killed_process_are_taken_over_at_once(tmp_path):
    """Also before its parent has waited for it."""
    path = tmp_path / "store.db"
    with Store(path) as store, process("claim", path, 0, 3) as other:
        other.stdout.readline()
        other.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not (mine := store.claim(keys(0, 1, 2))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert mine == set(keys(0, 1, 2))


@pytest.fixture
def two(tmp_path):
    with Store(tmp_path / "store.db") as one, Store(tmp_path / "store.db") as other:
        yield one, other


def test_a_claim_holds_against_its_own_handle_too(two):
    assert two[0].claim(keys(1)) == set(keys(1))
    assert two[0].claim(keys(1)) == set()
    assert two[1].claim(keys(1)) == set()


def test_released_claims_are_free_and_those_of_others_are_not_released(two):
    two[0].claim(keys(1, 2))
    two[1].release(keys(1))
    assert two[1].claim(keys(1)) == set()
    two[0].release(keys(1))
    assert two[1].claim(keys(1, 2)) == set(keys(1))


def test_a_judgement_ends_the_claim_and_what_is_stored_is_not_claimed(two):
    two[0].claim(keys(1))
    two[1].put(*judged(game(1)))
    two[0].release(keys(1))
    assert two[0].claim(keys(1)) == two[1].claim(keys(1)) == set()
    with closing(sqlite3.connect(two[0].path)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM claims").fetchone() == (0,)


def test_an_expired_claim_is_free(two):
    two[0].claim(keys(1), lease=-1)
    assert two[1].claim(keys(1)) == set(keys(1))


@pytest.mark.parametrize(
    ("change", "ended"), [({}, False), ({"started": 0.0}, True), ({"host": "elsewhere", "pid": 1 << 22}, False)]
)
def test_a_process_is_known_by_host_id_and_start(change, ended):
    """Its id may be another's by now; of another host nothing is known."""
    assert claims.has_ended(json.dumps(json.loads(claims.Owner().process) | change)) is ended
