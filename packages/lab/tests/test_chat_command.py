"""posttrain chat: a conversation is carried on, commands are obeyed, and what goes wrong is one line."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from packages.lab.tests.fake_chat_server import parrot, serving
from posttrain.core.cli import run as command
from posttrain.core.errors import RequestError
from posttrain.core.process import end_process
from posttrain.data.nano import BASE as NANO
from posttrain.data.sources import Source, load_conversations
from posttrain.lab.chat_models import ChatModel


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def chat(monkeypatch, capsys, lines, *arguments):
    """Status, standard output and standard error of a chat whose lines come from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    status = command(["chat", *arguments])
    return status, *capsys.readouterr()


def test_the_second_question_carries_the_first_and_its_answer(monkeypatch, capsys):
    with serving(parrot) as server:
        status, out, _ = chat(monkeypatch, capsys, ["one", "", "two"], server.url)
    assert status == 0
    assert [line.partition(" › ")[2] for line in out.splitlines()] == ["you said one", "you said two"]
    assert server.asked[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "you said one"},
        {"role": "user", "content": "two"},
    ]


def test_system_temperature_and_reset_change_what_is_sent(monkeypatch, capsys):
    lines = ["/system be brief", "/temperature 0", "one", "/reset", "/system off", "two"]
    with serving(parrot) as server:
        assert chat(monkeypatch, capsys, lines, server.url, "--max-tokens", "9", "--seed", "4")[0] == 0
    first, second = server.asked
    assert first["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}]
    assert (first["temperature"], first["max_tokens"], first["seed"], first["stream"]) == (0, 9, 4, True)
    assert second["messages"] == [{"role": "user", "content": "two"}]


def test_two_slashes_send_one(monkeypatch, capsys):
    with serving(parrot) as server:
        assert chat(monkeypatch, capsys, ["//etc/hosts"], server.url)[0] == 0
    assert server.asked[0]["messages"][-1]["content"] == "/etc/hosts"


def test_two_models_answer_the_same_question_and_keep_their_own_answers(monkeypatch, capsys):
    with serving(parrot) as server, serving(lambda messages: "no idea", models=("other",)) as second:
        lines = ["one", "two", "/compare off", "three"]
        status, out, _ = chat(monkeypatch, capsys, lines, server.url, second.url)
    assert status == 0
    assert [line.partition(" › ")[2] for line in out.splitlines()] == [
        *("you said one", "no idea", "you said two", "no idea", "you said three")
    ]
    assert second.asked[1]["messages"][1]["content"] == "no idea"
    assert len(second.asked) == 2


def test_a_model_that_joins_has_heard_what_was_said(monkeypatch, capsys):
    with serving(parrot) as server, serving(lambda messages: "late", models=("other",)) as second:
        assert chat(monkeypatch, capsys, ["one", f"/compare {second.url}", "two"], server.url)[0] == 0
    assert [message["content"] for message in second.asked[0]["messages"]] == ["one", "you said one", "two"]


def test_a_saved_conversation_is_a_demonstration(monkeypatch, capsys, tmp_path):
    file = tmp_path / "said.jsonl"
    with serving(parrot) as server:
        lines = ["/system be brief", "one", f"/save {file}", "two", f"/save {file}"]
        assert chat(monkeypatch, capsys, lines, server.url)[0] == 0
    (row,) = load_conversations(Source(path=str(file)), seed=0)
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("ending", ["length", "content_filter"])
def test_an_answer_that_was_cut_short_is_no_demonstration(monkeypatch, capsys, tmp_path, ending):
    file = tmp_path / "said.jsonl"
    with serving(parrot, ending=ending) as server:
        status, _, err = chat(monkeypatch, capsys, ["one", f"/save {file}"], server.url)
    assert status == 0
    assert ("cut at the most tokens" if ending == "length" else "withheld") in err
    assert json.loads(file.read_text())["messages"][1] == {
        "role": "assistant",
        "content": "you said one",
        "interrupted": True,
    }
    with pytest.raises(RequestError, match="no usable conversation: 1 with an interrupted answer"):
        load_conversations(Source(path=str(file)), seed=0)


def test_a_file_of_somebody_elses_is_not_overwritten(monkeypatch, capsys, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("precious")
    with serving(parrot) as server:
        status, _, err = chat(monkeypatch, capsys, ["one", f"/save {file}"], server.url)
    assert status == 2
    assert "is there already" in err
    assert file.read_text() == "precious"


def test_json_ends_with_the_whole_conversation(monkeypatch, capsys):
    with serving(parrot) as server:
        status, out, err = chat(monkeypatch, capsys, ["one"], server.url, "--json")
    assert status == 0
    (line,) = out.splitlines()
    assert json.loads(line)["conversations"][0]["messages"][1] == {"role": "assistant", "content": "you said one"}
    assert "you said one" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/temprature 1", "did you mean '/temperature'?"),
        ("/temperature hot", "not a number from 0 to 100"),
        ("/save", "save where?"),
        ("/save x.jsonl", "nothing was said"),
        ("/compare", "compare with what?"),
    ],
)
def test_a_wrong_command_in_a_script_ends_it_with_2(monkeypatch, capsys, line, said):
    with serving(parrot) as server:
        status, _, err = chat(monkeypatch, capsys, [line, "one"], server.url)
    assert status == 2
    assert said in err
    assert not server.asked


@pytest.mark.parametrize(("code", "status"), [(400, 2), (404, 2), (500, 1)])
def test_a_refusal_of_the_server_is_told_in_its_words(monkeypatch, capsys, code, status):
    with serving(lambda _: (code, "the context is\nfull")) as server:
        monkeypatch.setattr("time.sleep", lambda _: None)  # what the client waits before it asks a 500 again
        found, _, err = chat(monkeypatch, capsys, ["one"], server.url)
    assert found == status
    assert f"refused (status {code}): the context is full" in err


@pytest.mark.parametrize(
    ("url", "said", "status"),
    [
        ("http://127.0.0.1:9", "is the server running?", 1),
        ("http://user:secret@127.0.0.1:9", "leave that out", 2),
        ("http://", "has no host", 2),
    ],
)
def test_a_bad_address_is_one_line(monkeypatch, capsys, url, said, status):
    found, _, err = chat(monkeypatch, capsys, ["one"], url)
    assert found == status
    assert said in err
    assert "secret" not in err


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        (b"", "broke off: its stream ended without a reason to finish"),
        (b"data: {half\n\n", "no stream of chat completions"),
        (b"data: null\n\n", "no stream of chat completions"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "broke off: out of memory"),
    ],
)
def test_half_an_answer_is_never_taken_for_a_whole_one(monkeypatch, capsys, rest, said):
    with serving(lambda messages: rest) as server:
        status, out, err = chat(monkeypatch, capsys, ["one", "two"], server.url)
    assert status == 1
    assert "half of" in out
    assert said in err
    assert len(server.asked) == 1


def test_a_home_that_nobody_has_is_one_line(monkeypatch, capsys):
    with serving(parrot) as server:
        status, _, err = chat(monkeypatch, capsys, ["one", "/save ~nobody-of-that-name/x.jsonl"], server.url)
    assert status == 2
    assert "there is no such home folder" in err
    assert chat(monkeypatch, capsys, [], "~nobody-of-that-name/model")[0] == 2


def test_a_model_is_chosen_by_name(monkeypatch, capsys):
    with serving(parrot, models=("small", "large")) as server:
        assert chat(monkeypatch, capsys, ["one"], server.url, "--model", "large")[0] == 0
        status, _, err = chat(monkeypatch, capsys, ["one"], server.url, "--model", "lrge")
    assert server.asked[0]["model"] == "large"
    assert status == 2
    assert "did you mean 'large'?" in err


def test_a_model_is_chosen_for_the_url_beside_a_checkpoint_and_after_compare(monkeypatch, capsys):
    with serving(parrot, models=("small", "large")) as server, serving(parrot, models=("small", "large")) as second:
        lines = [f"/compare {second.url} large", "one"]
        assert chat(monkeypatch, capsys, lines, server.url)[0] == 0
    assert (server.asked[0]["model"], second.asked[0]["model"]) == ("small", "large")
    opened = []
    monkeypatch.setattr("posttrain.lab.chat_models.ChatModels.check", lambda *_: None)
    monkeypatch.setattr(
        "posttrain.lab.chat_models.ChatModels.open",
        lambda self, name, model=None: opened.append((name, model)) or ChatModel(name, None),
    )
    assert chat(monkeypatch, capsys, [], "nano", "http://127.0.0.1:9", "--model", "large")[0] == 0
    assert opened == [("nano", None), ("http://127.0.0.1:9", "large")]
    assert chat(monkeypatch, capsys, [], "nano", "--model", "large")[0] == 2


def test_votes_that_could_not_be_kept_are_told_before_anything_starts(monkeypatch, capsys, tmp_path):
    (tmp_path / "votes").mkdir()
    status, _, err = chat(monkeypatch, capsys, [], "http://127.0.0.1:9", "--web", "--votes", str(tmp_path / "votes"))
    assert status == 1
    assert "cannot write" in err
    assert "is the server running?" not in err


def test_of_a_policy_service_the_weights_of_the_moment_answer(monkeypatch, capsys):
    with serving(parrot, models=("policy@3",), contract="1") as server:
        assert chat(monkeypatch, capsys, ["one"], server.url)[0] == 0
        assert chat(monkeypatch, capsys, ["one"], server.url, "--model", "policy@3")[0] == 0
    assert [asked["model"] for asked in server.asked] == ["policy", "policy@3"]


def test_a_folder_without_a_chat_template_is_refused_before_a_service_starts(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(NANO / name)
    tokenizer = json.loads((NANO / "tokenizer.json").read_text().replace("<|im_start|>", "<|start|>"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, _, err = chat(monkeypatch, capsys, ["one"], str(folder))
    assert status == 2
    assert "has no chat template" in err


def test_a_state_folder_that_cannot_be_made_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "state").write_text("a file")
    status, _, err = chat(monkeypatch, capsys, ["one"], "nano")
    assert status == 1
    assert f"cannot write {tmp_path / 'state'}" in err


def test_a_reward_model_is_no_one_to_talk_to(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["Qwen2ForSequenceClassification"]}')
    status, _, err = chat(monkeypatch, capsys, ["one"], str(tmp_path))
    assert status == 2
    assert "a policy is a causal language model" in err


def test_an_unknown_fingerprint_says_where_to_look(monkeypatch, capsys, tmp_path):
    status, _, err = chat(monkeypatch, capsys, ["one"], "abcdef12", "--runs", str(tmp_path))
    assert status == 2
    assert "posttrain runs list" in err


@pytest.mark.service
def test_a_checkpoint_is_served_and_its_service_ends_with_the_chat(monkeypatch, capsys, tmp_path):
    pids = []

    def end_and_tell(process, seconds):
        pids.append(process.pid)
        end_process(process, seconds)

    monkeypatch.setattr("posttrain.core.supervised.end_process", end_and_tell)
    lines = ["Tom has 3 apples.", "What is 2 + 3?"]
    status, out, _ = chat(monkeypatch, capsys, lines, "nano", "--max-tokens", "8", "--temperature", "0", "--json")
    assert status == 0
    messages = json.loads(out)["conversations"][0]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert len(pids) == 1
    assert not os.path.exists(f"/proc/{pids[0]}")
    assert not list((tmp_path / "state" / "posttrain" / "chat").iterdir())


@pytest.mark.service
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_that_is_ended_from_outside_leaves_nothing_behind(tmp_path, ending):
    talking = [sys.executable, "-m", "posttrain.core", "chat", "nano", "--max-tokens", "4"]
    process = subprocess.Popen(talking, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    while "›".encode() not in os.read(process.stdout.fileno(), 1000):
        assert process.poll() is None
    (log,) = (tmp_path / "state" / "posttrain" / "chat").iterdir()
    process.send_signal(ending)
    assert process.wait(timeout=30) == 128 + ending
    process.stdin.close()
    process.stdout.close()
    assert not log.exists()
