"""What watches the service: every number it asks for is one the service has, every file is where it is looked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving import running

ROOT = Path(__file__).parents[1]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/lossd.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROMETHEUS = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())

# What Prometheus itself knows of whom it scrapes.
SCRAPE = {"up"}


@pytest.fixture(scope="module")
def scraped() -> Iterator[dict[str, list[dict[str, str]]]]:
    """Each sample's name with the labels it comes with, from a service that has done a little of everything."""
    mse = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [2.0]}}
    with running() as service, httpx.Client(base_url=service.url, timeout=30) as http:
        assert http.post("/v1/evaluate", json=mse).is_success
        assert not http.post("/v1/evaluate", json={}).is_success
        service.engine.workers[0]._heartbeat.note_memory(1, 2, 3)  # type: ignore[attr-defined]  # as on a GPU
        found: dict[str, list[dict[str, str]]] = {}
        for family in text_string_to_metric_families(http.get("/metrics").text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
        yield found


def queries() -> Iterator[tuple[str, str]]:
    """Yield the queries by which replicas are added: KEDA's, and KServe's."""
    for path in ("kubernetes/components/keda/scaled-object.yaml", "kserve/inference-service.yaml"):
        found = re.findall(r"query: (.+)", (ROOT / "deploy" / path).read_text())
        assert found
        for query in found:
            yield path, query


def expressions() -> Iterator[tuple[str, str]]:
    yield from queries()
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def selectors(expression: str) -> Iterator[tuple[str, dict[str, tuple[str, str]]]]:
    """The metrics an expression names, each with what it asks of their labels."""
    for name, matchers in re.findall(r"\b([a-z][a-z0-9]*(?:_[a-z0-9]+)+|up)\b(?!\()(?:\{([^}]*)\})?", expression):
        if name not in ("histogram_quantile",):
            found = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers)
            yield name, {label: (operator, value) for label, operator, value in found}


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_every_number_that_is_asked_for_exists(
    title: str, expression: str, scraped: dict[str, list[dict[str, str]]]
) -> None:
    named = list(selectors(expression))
    assert named, expression
    for name, matchers in named:
        if name in SCRAPE:
            continue
        assert name in scraped, f"{title} asks for {name}"
        for label, (_, value) in matchers.items():
            if label == "job":
                continue
            values = {labels.get(label) for labels in scraped[name]}
            assert values != {None}, f"{title} asks for {name} by {label}"
            if label in ("stage", "state"):
                assert value in values, f"{title}: {label} is never {value}"
    for labels in re.findall(r"by \(([^)]*)\)", expression):
        known = {label for name, _ in named for sample in scraped.get(name, ()) for label in sample}
        assert set(labels.split(", ")) <= known | {"instance"}


def test_every_name_of_a_metric_in_deploy_is_one_of_the_service_s(scraped: dict[str, list[dict[str, str]]]) -> None:
    files = [path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".yaml", ".yml", ".json", ".cfg")]
    named = {name for path in files for name in re.findall(r"\blossd_[a-z_]+[a-z]\b", path.read_text())}
    assert named > {"lossd_worker_busy_seconds_total", "lossd_front_busy_seconds_total", "lossd_backlog_seconds"}
    assert named <= scraped.keys()


def test_outcomes_that_alerts_name_are_problems_of_the_service() -> None:
    from lossd_client.errors import PROBLEMS

    text = json.dumps(ALERTS)
    outcomes = set(re.findall(r'outcome=\\"([\w-]+)\\"', text))
    assert outcomes
    assert outcomes <= set(PROBLEMS)


def test_the_dashboard_has_every_metric_of_the_service_s_own(scraped: dict[str, list[dict[str, str]]]) -> None:
    named = {name for _, expression in expressions() for name, _ in selectors(expression)}
    families = {
        re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in scraped if name.startswith("lossd_")
    }
    shown = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in named}
    assert families - shown == {"lossd_build_info"}


def test_panels_do_not_overlap_and_ids_are_unique() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def mounts(service: str) -> dict[str, Path]:
    """Where a container of the compose file finds which of our folders."""
    volumes = (volume.split(":") for volume in COMPOSE["services"][service]["volumes"])
    return {at: ROOT / source for source, at, *_ in volumes if source.startswith(".")}


def test_the_compose_file_mounts_what_there_is() -> None:
    for name in ("prometheus", "grafana"):
        assert COMPOSE["services"][name]["profiles"] == ["observe"]
        assert all(folder.is_dir() for folder in mounts(name).values())
        assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"][name]["ports"])


def test_each_service_of_the_compose_file_keeps_its_runs_in_a_volume_of_its_own() -> None:
    ours = {name: s for name, s in COMPOSE["services"].items() if s["image"] == COMPOSE["x-lossd"]["image"]}
    replicas = ours.pop("lossd-replica")  # more than one of a file's writers: it has no file
    assert "volumes" not in replicas
    assert replicas["environment"]["LOSSD_RUNS"] == "${LOSSD_RUNS:-off}"
    kept = [volume.split(":") for service in ours.values() for volume in service["volumes"]]
    assert {at for _, at in kept} == {"/var/lib/lossd"}
    assert len({name for name, _ in kept}) == len(ours)
    assert {name for name, _ in kept} <= COMPOSE["volumes"].keys()
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "VOLUME /var/lib/lossd" in dockerfile
    assert "XDG_DATA_HOME=/var/lib" in dockerfile


def test_the_database_of_the_compose_file_is_reachable_from_no_network() -> None:
    database = COMPOSE["services"]["postgres"]
    assert "ports" not in database
    assert database["profiles"] == ["postgres"]


def test_prometheus_scrapes_the_service_of_the_compose_file() -> None:
    folder = mounts("prometheus")["/etc/prometheus"]
    assert (folder / "prometheus.yml").exists(), "the image looks for it there"
    assert [(folder / name).exists() for name in PROMETHEUS["rule_files"]] == [True]
    (job,) = PROMETHEUS["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in COMPOSE["services"]
    assert any(published.endswith(f":{port}") for published in COMPOSE["services"][host]["ports"])
    assert job["job_name"] in json.dumps(ALERTS)


@pytest.mark.parametrize(
    "profiles", [[], ["gpu"], ["observe"], ["scale"], ["gpu", "observe", "scale", "postgres"]], ids=str
)
def test_whatever_is_started_together_has_ports_of_its_own(profiles: list[str]) -> None:
    started = [s for s in COMPOSE["services"].values() if "profiles" not in s or set(profiles) & set(s["profiles"])]
    ports = [port.rpartition(":")[0] for service in started for port in service.get("ports", ())]
    assert len(set(ports)) == len(ports)


def test_every_service_of_the_compose_file_is_scraped() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    static = {target.partition(":")[0] for config in job["static_configs"] for target in config["targets"]}
    found = {name for config in job["dns_sd_configs"] for name in config["names"]}
    ours = {name for name, s in COMPOSE["services"].items() if s["image"] == COMPOSE["x-lossd"]["image"]}
    assert static | found == ours
    # A name that is not started must not be down for ever, and one that always is must not vanish when it ends.
    assert static == {name for name in ours if "profiles" not in COMPOSE["services"][name]}
    assert {config["port"] for config in job["dns_sd_configs"]} == {8000}


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    folders = mounts("grafana")
    provisioning = folders["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert COMPOSE["services"][name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/lossd.yml").read_text())["providers"]
    dashboards = folders[provider["options"]["path"]]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (dashboards / Path(home).relative_to(provider["options"]["path"])).exists()
    variables: dict[str, Any] = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == source["type"]
