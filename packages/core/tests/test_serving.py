"""What a BentoML server is started with."""

import os
import tempfile

import pytest

from posttrain.core.errors import RequestError
from posttrain.core.serving import server_environment


@pytest.fixture(autouse=True)
def shared_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("BENTOML_HOME", raising=False)
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_home_is_this_users_alone_and_nothing_calls_home(shared_folder):
    environment = server_environment(8001, {})
    home = shared_folder / f"posttrain-{os.getuid()}" / "bentoml-8001"
    assert environment["BENTOML_HOME"] == str(home)
    assert home.parent.stat().st_mode & 0o777 == 0o700
    assert (environment["BENTOML_DO_NOT_TRACK"], environment["OTEL_SDK_DISABLED"]) == ("True", "true")


@pytest.mark.parametrize("how", ["linked elsewhere", "open to others"])
def test_home_that_somebody_else_prepared_is_refused(shared_folder, how):
    home = shared_folder / f"posttrain-{os.getuid()}"
    if how == "linked elsewhere":
        (shared_folder / "elsewhere").mkdir()
        home.symlink_to(shared_folder / "elsewhere")
    else:
        home.mkdir()
        home.chmod(0o777)
    with pytest.raises(RequestError, match="not a folder of this user's alone"):
        server_environment(8001, {})
