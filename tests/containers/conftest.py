"""What runs containers here, the images, and what they are given: a key file and checkpoints of the nano lab."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from delivery.sizes import COUNT
from posttrain.data import nano
from tests.containers import sdk_driver, tool_driver
from tests.containers.driver import Driver, Launch, run
from tests.containers.survey import SURVEY, survey_of

KEY = "a-key-of-these-tests"
REWARDS = """
import time
def length(prompt, completion, reference):
    return float(len(completion))
def slow(prompt, completion, reference):
    time.sleep(3.0)
    return float(len(completion))
"""


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """A Docker-compatible socket's if one answers, else the tool's, else there is nothing to test with."""
    found: Driver | None = sdk_driver.connect() or tool_driver.find()
    if found is None:
        pytest.skip(
            "no container runtime: nothing answers at DOCKER_HOST, and there is no program for it in "
            "POSTTRAIN_CONTAINER_TOOL or beside the checkout that this user may run"
        )
    yield found
    found.close()


@pytest.fixture(scope="session")
def image(driver: Driver) -> Callable[[str], str]:
    """The tag of a target's image; the test is skipped where it was not built."""

    def tag(target: str) -> str:
        name = f"posttrain/{target}:latest"
        if not driver.has(name):
            pytest.skip(f"{name} is not there; make images builds it")
        return name

    return tag


@pytest.fixture(scope="session")
def survey(driver: Driver, image: Callable[[str], str]) -> Callable[[str], dict[str, Any]]:
    """What lies inside a target's image; each is looked at once."""
    found: dict[str, dict[str, Any]] = {}

    def look(target: str) -> dict[str, Any]:
        if target not in found:
            ran = run(driver, Launch(image(target), ("-c", SURVEY + COUNT), ("python",)))
            assert ran.status == 0, ran.output
            found[target] = survey_of(ran.output)
        return found[target]

    return look


@pytest.fixture(scope="session")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A secrets file that the containers' user may read."""
    path = tmp_path_factory.mktemp("secrets") / "posttrain_api_key"
    path.parent.chmod(0o755)
    path.write_text(KEY + "\n")
    path.chmod(0o644)
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints as /models: `policy`, the nano base, and `reward`, the same with a drawn head; and
    functions that score."""
    from posttrain.data.chat import load_tokenizer
    from posttrain.trainers.models import align_special_tokens, load_sequence_classifier, save_checkpoint

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(nano.BASE, folder / "policy")
    model, _ = load_sequence_classifier(nano.BASE, seed=0)
    tokenizer = load_tokenizer(nano.BASE)
    align_special_tokens(model, tokenizer)
    save_checkpoint(model, tokenizer, folder / "reward")
    (folder / "rewards.py").write_text(REWARDS)
    readable(folder)
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty folder as /data, in which the containers' user may write."""
    folder = tmp_path / "work"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def readable(folder: Path) -> None:
    """Lets everybody read what is there, whoever's umask made it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
