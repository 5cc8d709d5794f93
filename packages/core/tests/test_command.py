"""The `posttrain` command: exit status, one-line errors, and nothing heavy for --help."""

import errno
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

import pytest

from posttrain.core import cli
from posttrain.core.errors import Interrupted, RequestError, WorkError


def fine(number: int = 1) -> None:
    """Do something."""
    print(f"number {number}")


def wrong() -> None:
    """Is always wrong."""
    raise RequestError("the number is [odd]; give an even one")


def failing() -> None:
    """Fails."""
    raise WorkError("the disk is full")


def interrupted() -> None:
    """Is interrupted."""
    raise KeyboardInterrupt


def ended() -> None:
    """Is interrupted, and cannot be resumed."""
    raise Interrupted("interrupted; nothing is kept")


def terminated() -> None:
    """Is ended by SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def full() -> None:
    """Writes through a library that says nothing itself."""
    raise OSError(errno.ENOSPC, "No space left on device", "/cache/file")


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    names = {"fine": fine, "serve.wrong": wrong, "serve.failing": failing, "interrupted": interrupted, "ended": ended}
    names |= {"terminated": terminated, "full": full}
    entries = [EntryPoint(name, f"{__name__}:{name}", cli.GROUP) for name in names]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries)
    monkeypatch.setattr(EntryPoint, "load", lambda self: names[self.name])


def test_command_runs_with_its_options(capsys):
    assert cli.run(["fine", "--number", "3"]) == 0
    assert capsys.readouterr().out == "number 3\n"


def test_wrong_request_is_one_line_and_status_2(capsys):
    assert cli.run(["serve", "wrong"]) == 2
    assert capsys.readouterr().err == "error: the number is [odd]; give an even one\n"


def test_failed_work_is_status_1(capsys):
    assert cli.run(["serve", "failing"]) == 1
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_interrupt_is_status_130_and_says_how_to_resume(capsys):
    assert cli.run(["interrupted"]) == 130
    assert "resume" in capsys.readouterr().err


def test_sigterm_is_status_143_and_says_how_to_resume(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["terminated"])
    assert exit.value.code == 143
    assert capsys.readouterr().err.strip() == "error: ended by SIGTERM; start the same command again to resume"


def test_a_full_disk_that_a_library_met_is_one_line_and_status_1(capsys):
    assert cli.run(["full"]) == 1
    assert "no space left to write /cache/file; free some" in capsys.readouterr().err


def test_interrupted_work_that_cannot_be_resumed_says_so(capsys):
    assert cli.run(["ended"]) == 130
    assert capsys.readouterr().err.strip() == "error: interrupted; nothing is kept"


def test_unknown_command_suggests_the_nearest(capsys):
    assert cli.run(["fin"]) == 2
    assert "unknown command 'fin' (did you mean 'fine'?)" in capsys.readouterr().err


def test_unknown_subcommand_suggests_the_nearest(capsys):
    assert cli.run(["serve", "wrnog"]) == 2
    assert "did you mean 'wrong'" in capsys.readouterr().err


def test_unknown_option_is_status_2(capsys):
    assert cli.run(["fine", "--nubmer", "3"]) == 2
    assert "--number" in capsys.readouterr().err


def test_help_lists_commands_of_all_packages(capsys):
    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Do something." in out
    assert "serve" in out


def test_real_help_imports_nothing_heavy():
    heavy = {"torch", "transformers", "trl", "datasets", "lm_eval", "bentoml", "pandas", "statsmodels"}
    code = (
        "import sys; from posttrain.core.cli import run; run(['--help']);"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
