"""What every image is: its packages and nothing else, a user without rights, labels, a size within its limit."""

import re

import pytest

from delivery.packages import read_packages
from delivery.sizes import beyond
from delivery.targets import ROOT, STOCK, TARGETS, installed_packages, version_of
from tests.containers.driver import Launch, run
from tests.containers.survey import keys_among, not_pinned, own, own_tests, pins, secrets

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

PACKAGES = read_packages(ROOT)
WITHOUT_TORCH = ("data", "eval-harness", "llm-judge")
every_target = pytest.mark.parametrize("target", STOCK)


def packages_of(target: str) -> dict[str, str]:
    """Distributions of this project that a target's image has, and their versions."""
    names = installed_packages(TARGETS[target].of, PACKAGES)
    return {PACKAGES[name].distribution: str(PACKAGES[name].version) for name in names}


@every_target
def test_it_prints_the_versions_of_its_packages(driver, image, target):
    ran = run(driver, Launch(image(target), ("--version",)))
    assert ran.status == 0, ran.output
    assert ran.output.splitlines() == [f"{name} {version}" for name, version in sorted(packages_of(target).items())]


@every_target
def test_it_runs_as_a_user_who_may_write_to_its_volumes_and_tmp_only(survey, target):
    found = survey(target)
    assert (found["uid"], found["gid"]) == (10001, 10001)
    assert sorted(found["writable"]) == ["/data", "/models", "/tmp"]
    assert (found["prefix"], found["cwd"]) == ("/opt/posttrain", "/data")


@every_target
def test_it_has_the_pinned_versions_and_nothing_that_is_not_pinned(survey, target):
    distributions = survey(target)["distributions"]
    assert not_pinned(distributions, pins((ROOT / "constraints.txt").read_text())) == {}
    assert own(distributions) == packages_of(target)


@pytest.mark.parametrize("target", WITHOUT_TORCH)
def test_it_has_no_torch(survey, target):
    assert "torch" not in survey(target)["distributions"]


@every_target
def test_it_holds_no_compiler_secret_cache_or_test(driver, image, survey, target):
    found = survey(target)
    assert found["compilers"] == []
    assert found["caches"] == []
    assert keys_among(found["keys"]) == []
    assert own_tests(found["ours"]) == []
    assert secrets(driver.config(image(target)).environment) == []


@every_target
def test_its_size_is_within_its_limit(survey, target):
    assert beyond({target: survey(target)["bytes"]}) == []


@pytest.mark.parametrize("target", ["rollout", "lab"])
def test_it_has_the_native_kernels(survey, target):
    assert [name for name in survey(target)["kernels"] if re.fullmatch(r"kernel-.+\.so", name)]


@every_target
def test_its_labels_and_its_way_in_are_set(driver, image, target):
    config = driver.config(image(target))
    version = version_of(TARGETS[target])
    assert config.labels["org.opencontainers.image.version"] == version
    assert re.fullmatch(r"[0-9a-f]{40}\+?", config.labels["org.opencontainers.image.revision"])
    assert config.labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config.entrypoint == ("tini", "--", "posttrain")
    assert config.user.partition(":")[0] in ("posttrain", "10001")
    assert driver.has(f"posttrain/{target}:{version}")


@every_target
def test_services_have_a_health_check_and_a_command_that_serves(driver, image, target):
    config = driver.config(image(target))
    port = TARGETS[target].port
    if port is None:
        assert config.command == ("--help",)
        assert not config.healthcheck
        return
    assert config.command[0] == "serve"
    assert config.command[config.command.index("--host") + 1] == "0.0.0.0"
    if config.healthcheck is None:
        pytest.skip(f"{driver.name} does not tell health checks")
    asked = " ".join(config.healthcheck)
    assert "posttrain.core.ready" in asked
    assert f"http://127.0.0.1:{port}" in asked
