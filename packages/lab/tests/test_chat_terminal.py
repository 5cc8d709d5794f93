"""posttrain chat on a terminal, and Ctrl-C: a process of its own that a test types at and reads from."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from packages.lab.tests.fake_chat_server import parrot, serving


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


HEEDS = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
"""For a child: tests that run in the background ignore Ctrl-C, and so would what they start."""


class Terminal:
    """A chat in a process of its own, on a terminal that a test types at."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "posttrain.core", "chat", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=HEEDS,
        )
        os.close(slave)
        self._read = b""

    @property
    def seen(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._read.decode(errors="ignore"))

    def wait_for(self, text, after="", seconds=30.0):
        """Reads until `text` stands on the screen behind `after`."""
        deadline = time.monotonic() + seconds
        while text not in self.seen.rpartition(after)[2] if after else text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self._read += os.read(self.master, 65536)
                except OSError:  # the other end is closed
                    assert text in self.seen, self.seen

    def type(self, text):
        self._read = b""
        os.write(self.master, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)


@pytest.fixture
def terminal():
    opened = []

    def start(*arguments):
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()
        os.close(each.master)


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal, tmp_path):
    long = "word " * 500
    with serving(lambda messages: long if "long" in messages[-1]["content"] else "short", pause=0.02) as server:
        chat = terminal(server.url)
        chat.wait_for("you ›")
        chat.type("a long one\n")
        chat.wait_for("word word")
        chat.interrupt()
        chat.wait_for("[stopped]")
        chat.type(f"/save {tmp_path}/said.jsonl\n")
        chat.wait_for("saved:")
        chat.type("a brief one\n")
        chat.wait_for("short")
        chat.wait_for("you ›", after="short")
        chat.type("\x04")
        assert chat.process.wait(timeout=20) == 0
    row = json.loads((tmp_path / "said.jsonl").read_text())
    partial = row["messages"][1]
    assert partial["interrupted"] is True
    assert partial["content"].startswith("word word")
    assert len(partial["content"]) < len(long)
    # What was stopped is part of what the model is told next.
    assert server.asked[1]["messages"][1] == {"role": "assistant", "content": partial["content"]}


def test_ctrl_c_ends_a_script(tmp_path):
    with serving(lambda messages: "word " * 500, pause=0.02) as server:
        piped = [sys.executable, "-m", "posttrain.core", "chat", server.url]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(piped, **pipes, preexec_fn=HEEDS)
        process.stdin.write(b"one\ntwo\n")
        process.stdin.close()
        while b"word" not in os.read(process.stdout.fileno(), 1000):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        process.stdout.close()
        assert b"interrupted" in process.stderr.read()
        process.stderr.close()
    assert len(server.asked) == 1


def test_lines_of_earlier_chats_are_at_the_arrow_keys_and_nobody_elses_to_read(terminal, tmp_path):
    with serving(parrot) as server:
        first = terminal(server.url)
        first.wait_for("you ›")
        first.type("remember me\n/exit\n")
        assert first.process.wait(timeout=20) == 0
        history = tmp_path / "state" / "posttrain" / "chat_history"
        assert history.stat().st_mode & 0o077 == 0
        second = terminal(server.url)
        second.wait_for("you ›")
        second.type("\x1b[A\x1b[A\n")  # past /exit
        second.wait_for("you said remember me")


def test_a_history_that_cannot_be_kept_ends_no_chat(terminal, tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    with serving(parrot) as server:
        chat = terminal(server.url)
        chat.wait_for("you ›")
        assert "lines are not kept in" in chat.seen
        chat.type("hello\n")
        chat.wait_for("you said hello")


def test_control_characters_of_a_model_do_not_reach_the_terminal(terminal):
    with serving(lambda _: "\x1b]0;owned\x07 done") as server:
        chat = terminal(server.url)
        chat.wait_for("you ›")
        chat.type("hello\n")
        chat.wait_for("done")
    assert "\\x1b]0;owned\\x07" in chat.seen
    assert "\x07" not in chat.seen


def test_two_answers_stand_side_by_side_on_a_terminal(terminal):
    with serving(lambda _: "left") as server, serving(lambda _: "right", models=("other",)) as second:
        chat = terminal(server.url, second.url)
        chat.wait_for("you ›")
        chat.type("hello\n")
        chat.wait_for("you ›", after="right")
    assert any(re.search(r"left\s+right", line) for line in chat.seen.splitlines())
