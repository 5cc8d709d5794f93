"""A user's function in processes of its own: what it does not survive costs its item, and nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posttrain.core.errors import WorkError
from posttrain.reward_model.functions import FunctionLimits, FunctionPool, UserFunction, function_of_file
from posttrain.reward_model.functions.pool import Failure, _Process

pytestmark = pytest.mark.service

REWARDS = """
import ctypes, os, signal, subprocess, sys, time

def does(prompt, completion, reference):
    if completion == "exit": os._exit(3)
    if completion == "crash": ctypes.string_at(0)
    if completion == "real-time signal": os.kill(os.getpid(), 40)
    if completion == "babble": os.write(int(sys.argv[1]), b"no JSON\\n")
    if completion == "raise": raise ValueError(completion * 1000)
    if completion == "leave": sys.exit(0)
    if completion == "eat": [0] * 10**11
    if completion == "hang": time.sleep(1000)
    if completion == "spin":
        while True: pass
    if completion == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if completion == "family":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        time.sleep(1000)
    if completion == "print": print("not for the channel", flush=True)
    if completion == "key": return float(any(name.startswith("POSTTRAIN_API_KEY") for name in os.environ))
    return float(len(completion))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture
def pool(file: Path):
    limits = FunctionLimits(seconds=0.4, processes=2, memory_mib=1024)
    pool = FunctionPool(function_of_file("does", f"{file}:does"), limits)
    yield pool
    pool.close()


def items(*completions: str) -> list:
    return [["p", completion, None] for completion in completions]


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("completion", "says"),
    [
        ("exit", "it ended its process (exit status 3)"),
        ("crash", "it ended its process (SIGSEGV)"),
        ("real-time signal", "it ended its process (signal 40)"),
        ("babble", "its process gave an answer that cannot be read (JSONDecodeError)"),
        ("raise", "it raised ValueError at rewards.py:9"),
        ("leave", "it raised SystemExit at rewards.py:10"),
        ("eat", "it raised MemoryError at rewards.py:11"),
        ("hang", "it took more than 0.4 s and was ended"),
        ("spin", "it took more than 0.4 s and was ended"),
        ("stubborn", "it took more than 0.4 s and was ended"),
    ],
)
def test_what_a_function_does_costs_its_item_only(pool: FunctionPool, completion: str, says: str):
    outcomes = pool.submit(items("a", "bb", completion, "cccc", completion, "dddddd")).result(30)
    assert outcomes == [1.0, 2.0, Failure(says), 4.0, Failure(says), 6.0]


def test_items_come_back_in_order_whichever_process_took_them(pool: FunctionPool):
    completions = ["x" * (n % 17) for n in range(1000)]
    assert pool.submit(items(*completions)).result(30) == [float(len(c)) for c in completions]


def test_what_a_function_prints_does_not_disturb_its_answers(pool: FunctionPool, capfd: pytest.CaptureFixture[str]):
    assert pool.submit(items("print", "print")).result(30) == [5.0, 5.0]
    assert capfd.readouterr().out == ""


def test_a_function_sees_neither_the_services_key_nor_its_file(pool: FunctionPool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "sesame")
    monkeypatch.setenv("POSTTRAIN_API_KEY_FILE", "/run/secrets/posttrain_api_key")
    pool.submit(items("exit", "exit", "exit")).result(30)  # both processes are new
    assert pool.submit(items("key", "key")).result(30) == [0.0, 0.0]


def test_a_hanging_function_and_all_that_it_started_are_gone(pool: FunctionPool):
    before = {p.pid for p in children()}
    pool.submit(items("family")).result(30)
    pool.submit(items("a")).result(30)
    assert len({p.pid for p in children()} - before) <= 1, "one new worker, and no child of the old one"


def test_small_requests_are_answered_while_a_hanging_one_goes_on(file: Path):
    pool = FunctionPool(function_of_file("does", f"{file}:does"), FunctionLimits(seconds=0.3, processes=1))
    slow = pool.submit(items(*["hang"] * 4))
    quick = pool.submit(items("a"))
    assert quick.result(30) == [1.0]
    assert not slow.done()
    slow.cancel()
    pool.close()


def test_a_cancelled_request_ends_even_in_the_middle_of_an_item(file: Path):
    pool = FunctionPool(function_of_file("does", f"{file}:does"), FunctionLimits(seconds=60, processes=1))
    gone = pool.submit(items("hang", "hang"))
    time.sleep(0.3)
    assert gone.cancel()
    start = time.monotonic()
    assert pool.submit(items("a")).result(30) == [1.0]
    assert time.monotonic() - start < 10
    pool.close()


def test_items_beyond_the_deadline_of_their_request_are_failures(pool: FunctionPool):
    outcomes = pool.submit(items(*["hang"] * 20), until=time.monotonic() + 1).result(30)
    assert outcomes[0] == Failure("it took more than 0.4 s and was ended")
    assert outcomes[-1] == Failure("it was not reached before the request's deadline")


def test_a_replaced_process_runs_the_code_that_the_version_names(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("import os\ndef f(p, c, r):\n    return 1.0 if c else os._exit(1)\n")
    pool = FunctionPool(function_of_file("f", f"{path}:f"), FunctionLimits(processes=1))
    path.write_text("def f(p, c, r):\n    return 2.0\n")
    assert pool.submit(items("", "a")).result(30)[1] == 1.0
    pool.close()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_module\n", "cannot be imported: ModuleNotFoundError"),
        ("import os\nos._exit(7)\n", r"ended its process while it was loaded \(exit status 7\)"),
        ("import os\nos.kill(os.getpid(), 40)\n", r"ended its process while it was loaded \(signal 40\)"),
        ("import os, sys\nos.write(int(sys.argv[1]), b'1\\n')\n", "an answer that cannot be read"),
        ("x = 1\n", "has no function 'f'"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_one_error(tmp_path: Path, source: str, says: str):
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(WorkError, match=says):
        FunctionPool(function_of_file("f", f"{path}:f"))
    assert not children()


def full(*args, **kwargs):
    raise OSError(24, "Too many open files")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", [(socket, "socketpair"), (subprocess, "Popen")])
def test_a_first_process_that_cannot_be_started_is_one_error(file: Path, monkeypatch: pytest.MonkeyPatch, what):
    monkeypatch.setattr(*what, full)
    with pytest.raises(WorkError, match="source 'does' cannot start a process: Too many open files"):
        FunctionPool(function_of_file("does", f"{file}:does"))


@pytest.mark.timeout(30)
def test_a_later_process_that_cannot_be_started_costs_its_items_only(file: Path):
    pool = FunctionPool(function_of_file("does", f"{file}:does"), FunctionLimits(processes=1))
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(subprocess, "Popen", full)
        failed = Failure("source 'does' cannot start a process: Too many open files")
        assert pool.submit(items("exit")).result(10) == [Failure("it ended its process (exit status 3)")]
        assert pool.submit(items("a", "bb")).result(10) == [failed, failed]
    assert pool.submit(items("a", "bb")).result(30) == [1.0, 2.0]
    pool.close()


def test_a_process_that_cannot_be_started_leaves_no_socket(file: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[socket.socket] = []
    socketpair = socket.socketpair

    def remembered():
        made.extend(socketpair())
        return made[-2:]

    monkeypatch.setattr(socket, "socketpair", remembered)
    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(WorkError):
        _Process(function_of_file("does", f"{file}:does"), FunctionLimits())
    assert [end.fileno() for end in made] == [-1, -1]


@pytest.mark.timeout(30)
def test_an_error_nobody_foresaw_reaches_who_makes_the_pool(file: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*args):
        raise LookupError("nobody foresaw this")

    monkeypatch.setattr("posttrain.reward_model.functions.pool._Process", broken)
    with pytest.raises(LookupError, match="nobody foresaw this"):
        FunctionPool(function_of_file("does", f"{file}:does"))


def test_an_error_nobody_foresaw_costs_its_items_only_and_is_logged_without_them(
    file: Path, caplog: pytest.LogCaptureFixture
):
    pool = FunctionPool(function_of_file("does", f"{file}:does"), FunctionLimits(processes=1))

    def broken(job, places, process):
        process.end()
        raise LookupError(job.items[0][1])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pool, "_run", broken)
        assert pool.submit(items("secret")).result(10) == [Failure("the service failed; its log says where")]
    assert pool.submit(items("a")).result(30) == [1.0]
    pool.close()
    assert "source 'does' failed with LookupError at" in caplog.text
    assert "secret" not in caplog.text


def test_an_installed_function_runs_too():
    pool = FunctionPool(UserFunction("power", "1", entry_point="builtins:pow"), FunctionLimits(processes=1))
    assert pool.submit([[2, 5, 7]]).result(30) == [4.0]
    pool.close()


def test_closing_leaves_no_process_and_no_caller_waiting(file: Path):
    pool = FunctionPool(function_of_file("does", f"{file}:does"), FunctionLimits(seconds=60, processes=2))
    waiting = [pool.submit(items("hang")) for _ in range(4)]
    time.sleep(0.2)
    pool.close()
    assert all(future.cancelled() for future in waiting)
    assert not children()


def test_no_process_outlives_a_service_that_is_killed(file: Path):
    program = (
        "import time\n"
        "from posttrain.reward_model.functions import *\n"
        f"pool = FunctionPool(function_of_file('does', {str(file)!r} + ':does'), FunctionLimits(seconds=100))\n"
        "future = pool.submit([['p', 'stubborn', None], ['p', 'spin', None]])\n"
        "time.sleep(0.3)\nprint('busy', flush=True)\ntime.sleep(100)\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    assert service.stdout.readline() == "busy\n"
    workers = psutil.Process(service.pid).children(recursive=True)
    assert len(workers) == 2
    os.kill(service.pid, signal.SIGKILL)
    service.wait(10)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
