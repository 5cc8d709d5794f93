"""The chat page in a real browser: sent, streamed, stopped, voted by keyboard, on a phone's width, with a key."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

from packages.lab.tests.chromium import browser
from packages.lab.tests.fake_chat_server import serving
from posttrain.core.serving import free_port
from posttrain.data.nano import BASE as NANO
from posttrain.data.sources import Source, load_pairs

pytestmark = [pytest.mark.slow, pytest.mark.service]

READY = "document.getElementById('models').textContent"
VOTE = "document.querySelector('.vote')"
ANSWERS = "[...document.querySelectorAll('.round:last-child .answer .text')].map((each) => each.textContent)"
NAMES = "[...document.querySelectorAll('.round:last-child .answer h2')].map((each) => each.textContent)"


@pytest.fixture(scope="module")
def tab():
    with browser() as page:
        yield page


@contextmanager
def running(*arguments, ready="/chat", **environment):
    """Address of a `posttrain …` that listens on a port of its own until the block ends."""
    port = free_port()
    command = [sys.executable, "-m", "posttrain.core", *map(str, arguments), "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, **environment})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(url + ready, timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, "it ended at once"
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


@pytest.fixture
def page(tab, tmp_path):
    """The page between two models, of which one says more the longer one waits, and its file of votes."""
    votes = tmp_path / "votes.jsonl"
    with (
        serving(lambda _: "good " * 20 + "end", pause=0.02) as one,
        serving(lambda _: "bad", models=("other",)) as two,
        running("chat", one.url, two.url, "--web", "--votes", votes) as url,
    ):
        tab.open(f"{url}/chat")
        tab.wait(READY)
        tab.complaints.clear()
        yield tab, one, two, votes
        assert not tab.complaints


def send(tab, text):
    assert tab.focused() == "message"
    tab.type(text)
    tab.press("Enter")


def test_a_question_is_answered_by_two_unnamed_models_and_voted_on_by_keyboard_alone(page):
    tab, one, two, votes = page
    send(tab, "which is better?")
    tab.wait(f"{ANSWERS}.some((text) => text.startsWith('good') && !text.endsWith('end'))")  # it comes bit by bit
    tab.wait(VOTE)
    answers = tab.script(ANSWERS)
    assert tab.script(NAMES) == ["A", "B"]
    assert sorted(text[-3:] for text in answers) == ["bad", "end"]
    better = "B" if answers[1].endswith("end") else "A"
    for _ in range("BtA".index(better) + 1):  # backwards from the message: B is better, Tie, A is better
        tab.press("Tab", shift=True)
    assert tab.focused() == f"{better} is better"
    tab.press("Enter")
    tab.wait(f"!({VOTE})")
    assert tab.focused() == "message"
    place = {"A": 0, "B": 1}[better]
    assert tab.script(NAMES)[place].startswith(f"{better} · fake at 127.0.0.1")
    assert "is better" in tab.script("document.getElementById('status').textContent")
    send(tab, "go on")
    tab.wait(VOTE)
    for server in (one, two):  # both go on from the answer that was better
        told = [message["content"] for message in server.asked[1]["messages"]]
        assert told == ["which is better?", "good " * 20 + "end", "go on"]
    tab.press("Escape")
    tab.press("t")
    tab.wait("document.getElementById('stored').textContent === '2 votes stored'")
    (pair,) = load_pairs(Source(path=str(votes)), seed=0)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("good " * 20 + "end", "bad")


def test_escape_stops_the_answers_and_what_came_of_them_stays(page):
    tab, one, *_ = page
    send(tab, "tell me")
    tab.wait(f"{ANSWERS}.some((text) => text.startsWith('good good'))")
    tab.press("Escape")
    tab.wait("document.querySelector('.mark')")
    assert tab.script("document.querySelector('.mark').textContent") == "Stopped"
    assert not any(text.endswith("end") for text in tab.script(ANSWERS))
    assert not tab.script(f"Boolean({VOTE})")
    tab.script("document.getElementById('new').click()")
    send(tab, "anew")
    tab.wait(VOTE)
    assert [message["content"] for message in one.asked[-1]["messages"]] == ["anew"]


def test_what_a_model_says_is_text_and_nothing_else(tab, tmp_path):
    evil = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    with serving(lambda _: evil) as server, running("chat", server.url, "--web", "--votes", tmp_path / "v") as url:
        tab.open(f"{url}/chat")
        tab.wait(READY)
        send(tab, "hello")
        tab.wait(f"{ANSWERS}[0]?.endsWith('</script>')")
        assert tab.script(ANSWERS) == [evil]
        assert tab.script("document.title") == "posttrain chat"


def test_a_withheld_answer_is_not_voted_on(tab, tmp_path):
    with (
        serving(lambda _: "all of it") as one,
        serving(lambda _: "some of", models=("other",), ending="content_filter") as two,
        running("chat", one.url, two.url, "--web", "--votes", tmp_path / "v") as url,
    ):
        tab.open(f"{url}/chat")
        tab.wait(READY)
        send(tab, "hello")
        tab.wait("document.querySelector('.vote-hint')")
        assert "nothing to vote on" in tab.script("document.querySelector('.vote-hint').textContent")
        assert "Withheld by the server" in tab.script("document.getElementById('log').innerText")
        assert not tab.script(f"Boolean({VOTE})")


def test_on_a_phone_nothing_is_wider_than_the_screen_and_all_controls_have_names(page):
    tab, *_ = page
    for dark in (False, True):
        tab.open(tab.script("location.href"), width=390, height=780, dark=dark, touch=True)
        tab.wait(READY)
        tab.script("document.getElementById('settings-button').click()")
        tab.script("document.getElementById('message').focus()")
        send(tab, "a word that is long: " + "x" * 300)
        tab.wait(VOTE)
        assert tab.script("document.documentElement.scrollWidth") == 390
        assert tab.script(
            "[...document.querySelectorAll('button, input, select, textarea, article')].every((each) => "
            "each.getBoundingClientRect().right <= 390 && each.getBoundingClientRect().left >= 0)"
        )
        assert tab.unnamed() == []


def test_with_a_key_the_page_asks_for_it_and_forgets_it_when_it_is_loaded_again(tab, tmp_path):
    with serving(lambda _: "hello back") as server:
        arguments = ("chat", server.url, "--web", "--votes", tmp_path / "v")
        with running(*arguments, POSTTRAIN_API_KEY="s3cret") as url:
            tab.open(f"{url}/chat")
            tab.wait("document.getElementById('key-dialog').open")
            tab.type("wrong")
            tab.press("Enter")
            tab.wait("document.getElementById('key-note').textContent.includes('does not take')")
            tab.type("s3cret")
            tab.press("Enter")
            tab.wait(READY)
            send(tab, "hello")
            tab.wait(f"{ANSWERS}[0] === 'hello back'")
            assert (
                tab.script("JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])") == '[{},{},""]'
            )
            tab.open(f"{url}/chat")
            tab.wait("document.getElementById('key-dialog').open")


def test_the_policy_services_own_page_compares_its_model_with_itself(tab, tmp_path):
    with running("serve", "policy", NANO, "--threads", 1, ready="/readyz") as url:
        tab.open(f"{url}/chat")
        tab.wait(READY)
        tab.script(
            "(() => { const second = document.getElementById('second'); second.value = 'policy'; "
            "document.getElementById('temperature').value = '1.5'; })()"
        )
        # At this temperature two samples are the same once in a long while.
        for _ in range(5):
            send(tab, "Tom has 3 apples and buys 4 more. How many apples does Tom have?")
            tab.wait(f"{VOTE} || document.querySelector('.vote-hint')")
            if tab.script(f"Boolean({VOTE})"):
                break
        tab.press("Escape")
        tab.press("a")
        tab.wait("document.getElementById('download').textContent === 'Save 1 vote'")
        tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        tab.script("document.getElementById('download').click()")
        file = tmp_path / "votes.jsonl"
        for _ in range(100):
            if file.exists():
                break
            time.sleep(0.05)
        (pair,) = load_pairs(Source(path=str(file)), seed=0)
        assert pair["chosen"] != pair["rejected"]
