"""Keys come from a variable or from the file that its _FILE names, and from nowhere else."""

import pytest

from posttrain.core.asgi import ServiceMiddleware
from posttrain.core.clients import RewardClient
from posttrain.core.errors import RequestError
from posttrain.core.keys import read_key, warn_without_key, without_key

KEY = "s3same-key"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("POSTTRAIN_API_KEY", "POSTTRAIN_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def key_file(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text(f"\n {KEY}\r\n")
    monkeypatch.setenv("POSTTRAIN_API_KEY_FILE", str(path))
    return path


@pytest.mark.parametrize(("told", "found"), [(None, None), ("", None), (KEY, KEY), (f" {KEY}\n", KEY)])
def test_the_variable_holds_the_key(monkeypatch, told, found):
    if told is not None:
        monkeypatch.setenv("POSTTRAIN_API_KEY", told)
    assert read_key("POSTTRAIN_API_KEY") == found


def test_the_file_that_a_second_variable_names_holds_the_key_without_white_space(key_file, monkeypatch):
    assert read_key("POSTTRAIN_API_KEY") == KEY
    monkeypatch.setenv("POSTTRAIN_API_KEY", "")  # as a compose file hands on what is not set
    assert read_key("POSTTRAIN_API_KEY") == KEY
    assert read_key("OPENAI_API_KEY_OF_NOBODY") is None


def test_services_and_clients_read_the_file(key_file):
    assert ServiceMiddleware(None).api_key == KEY
    assert RewardClient("http://127.0.0.1:1")._http.headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read (No such file or directory); put the key into that file"),
        (b"", "is empty; put the key into it"),
        (b" \n\n", "is empty"),
        (b"s3same\nkey", "holds no key: one is a single word of printable ASCII"),
        ("s3same-kéy".encode(), "holds no key"),
    ],
)
def test_a_file_without_a_key_is_one_line_that_names_it_and_repeats_nothing(key_file, content, says):
    key_file.unlink()
    if content is not None:
        key_file.write_bytes(content)
    with pytest.raises(RequestError) as error:
        read_key("POSTTRAIN_API_KEY")
    assert f"POSTTRAIN_API_KEY_FILE names {key_file}, which {says}" in str(error.value)
    assert "\n" not in str(error.value)
    assert "s3same" not in str(error.value)


def test_a_folder_in_place_of_the_file_is_one_line(key_file, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY_FILE", str(key_file.parent))
    with pytest.raises(RequestError, match="cannot be read"):
        read_key("POSTTRAIN_API_KEY")


def test_two_keys_are_one_too_many(key_file, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_API_KEY", "another")
    with pytest.raises(RequestError, match="POSTTRAIN_API_KEY and POSTTRAIN_API_KEY_FILE are both set") as error:
        read_key("POSTTRAIN_API_KEY")
    assert KEY not in str(error.value)


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_a_service_for_others_without_a_key_warns(capsys, host, warned):
    warn_without_key(host)
    assert ("POSTTRAIN_API_KEY is not set" in capsys.readouterr().err) is warned


def test_a_key_that_cannot_be_read_stops_a_service_on_loopback_too(key_file):
    key_file.write_text("")
    with pytest.raises(RequestError, match="is empty"):
        warn_without_key("127.0.0.1")


def test_a_process_without_the_key_has_no_way_to_it_either():
    environment = {"POSTTRAIN_API_KEY": KEY, "POSTTRAIN_API_KEY_FILE": "/run/secrets/key", "HOME": "/home/me"}
    assert without_key(environment) == {"HOME": "/home/me"}
