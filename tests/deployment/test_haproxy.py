"""The one configuration of HAProxy, as Kubernetes, Docker Compose and the tests start it."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import yaml

from deployment.proxy import CONFIGURATION, HAPROXY, ROOT
from lossd.configuration.settings import Settings

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["lossd-proxy"]
(POD,) = (
    each["spec"]["template"]["spec"]
    for each in yaml.safe_load_all((ROOT / "deploy/haproxy/deployment.yaml").read_text())
    if each["kind"] == "Deployment"
)
TEXT = CONFIGURATION.read_text()


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param(
            {each["name"]: each.get("value", "default") for each in POD["containers"][0]["env"]}, id="kubernetes"
        ),
        pytest.param(COMPOSE["environment"], id="compose"),
        pytest.param({"PROXY_REPLICAS": "a:8000", "PROXY_DNS": "127.0.0.1:53", "PROXY_BIND": ":1"}, id="elsewhere"),
    ],
)
def test_haproxy_accepts_it(environment: dict[str, Any]) -> None:
    done = subprocess.run(
        [str(HAPROXY), "-c", "-f", str(CONFIGURATION)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def seconds(option: str) -> int:
    (found,) = re.findall(rf"^ *{option} (\d+)s", TEXT, re.MULTILINE)
    return int(found)


def test_its_times_fit_the_service_s() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert seconds("timeout server") * 1000 > defaults["request_timeout_ms"]
    assert seconds("timeout client") > seconds("timeout server")
    assert seconds("hard-stop-after") > seconds("timeout server") + seconds("grace")
    assert POD["terminationGracePeriodSeconds"] > seconds("hard-stop-after")
    assert int(COMPOSE["stop_grace_period"].removesuffix("s")) > seconds("hard-stop-after")
    assert int(re.findall(r"maxconn (\d+)", TEXT)[0]) <= defaults["max_connections"]


def test_its_ports_are_those_that_are_published() -> None:
    clients, status = (int(port) for port in re.findall(r"presetenv PROXY_\w+ :(\d+)", TEXT))
    (container,) = POD["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": clients, "status": status}
    assert container["readinessProbe"]["httpGet"] == {
        "path": re.findall(r"monitor-uri (\S+)", TEXT)[0],
        "port": "status",
    }
    assert COMPOSE["ports"] == [f"127.0.0.1:8002:{clients}"]
    assert COMPOSE["image"] == container["image"]


def test_it_documents_every_variable_that_it_reads() -> None:
    read = set(re.findall(r"\$\{(\w+)\}|defined\((\w+)\)", TEXT))
    assert {name for pair in read for name in pair if name} == set(re.findall(r"^#   (\w+) ", TEXT, re.MULTILINE))
