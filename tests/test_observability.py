"""The shipped dashboard and Prometheus' settings speak of metrics that the services have, and of nothing else."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client import REGISTRY

from posttrain.llm_judge.serving import telemetry as judge
from posttrain.reward_model import telemetry as reward
from posttrain.rollout import telemetry as policy
from tests.compose_file import FOLDER, compose_file

OBSERVABILITY = FOLDER / "observability"
DASHBOARD = json.loads((OBSERVABILITY / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
NAME = re.compile(r"\bposttrain_\w+")


def exported() -> dict[str, set[str]]:
    """Every sample that the three services may export, with its labels, as the registry of a process has them."""
    assert policy.SLOTS  # made when it is imported
    for made_on_first_use in (reward.telemetry, judge.telemetry):
        made_on_first_use()
    samples: dict[str, set[str]] = {}
    for collector in set(REGISTRY._collector_to_names):
        for metric in collector.collect():
            if not metric.name.startswith("posttrain_"):
                continue
            endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}[metric.type]
            labels = set(collector._labelnames)
            samples |= {f"{metric.name}{end}": labels | ({"le"} if end == "_bucket" else set()) for end in endings}
    return samples


def expressions() -> list[str]:
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    found += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]]
    return found + [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]


def test_every_metric_of_the_dashboard_is_exported():
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(named) > 25
    assert named <= set(exported())


def test_every_label_that_an_expression_selects_or_groups_by_is_one_of_its_metrics():
    samples = exported()
    for expression in expressions():
        labels = set(re.findall(r"(\w+)!?[=~]+\"", expression))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            labels |= {label.strip() for label in group.split(",")}
        for metric in NAME.findall(expression):
            assert labels <= samples[metric], expression


def test_what_a_service_is_asked_of_most_is_on_the_dashboard():
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert named >= {
        "posttrain_policy_generated_tokens_total",
        "posttrain_policy_batch_size_bucket",
        "posttrain_policy_queue_seconds_bucket",
        "posttrain_policy_weights_version",
        "posttrain_reward_score_bucket",
        "posttrain_judge_cost_total",
        "posttrain_policy_requests_total",
        "posttrain_reward_requests_total",
        "posttrain_judge_requests_total",
    }


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert all(target["expr"] for target in panel["targets"])


def test_panels_have_numbers_of_their_own_and_do_not_overlap():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_asks_the_source_of_data_that_is_provisioned():
    source = yaml.safe_load((OBSERVABILITY / "datasource.yaml").read_text())["datasources"][0]
    asked = {one["datasource"]["uid"] for panel in PANELS for one in (panel, *panel["targets"])}
    assert asked == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


def test_grafana_finds_the_dashboard_where_compose_puts_it():
    provider = yaml.safe_load((OBSERVABILITY / "dashboards.yaml").read_text())["providers"][0]
    mounts = dict(mount.split(":")[:2] for mount in compose_file()["services"]["grafana"]["volumes"])
    place = mounts["./observability/dashboard.json"]
    assert place.rpartition("/")[0] == provider["options"]["path"]
    assert compose_file()["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == place


def test_prometheus_scrapes_each_service_where_it_listens_with_the_key_in_a_file():
    jobs = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets == {"policy": ["policy:8001"], "reward": ["reward:8002"], "judge": ["judge:8003"]}
    for job in jobs:
        assert job["authorization"] == {"credentials_file": "/run/secrets/posttrain_api_key"}
        assert "metrics_path" not in job


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (Debian's package prometheus) is not installed")
def test_prometheus_own_check_takes_the_settings():
    command = ["promtool", "check", "config", "--syntax-only", str(OBSERVABILITY / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
