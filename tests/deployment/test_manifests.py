"""The manifests under deploy, and Docker Compose's, agree with the service: routes, ports, settings, memory, users."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from pydantic import ByteSize, TypeAdapter

from docs.snippets import ROOT
from lossd.configuration.settings import Settings
from serving import openapi

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OBJECTS = [
    (path.relative_to(ROOT / "deploy"), document)
    for folder in ("kubernetes", "kserve", "haproxy")
    for path in sorted((ROOT / "deploy" / folder).rglob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
TORCH_BYTES = 1 << 30
"""What front and worker take before the first request, generously."""


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the specification of each pod of lossd; patches are none."""
    for path, document in OBJECTS:
        if str(path) == "kubernetes/base/deployment.yaml":
            yield str(path), document["spec"]["template"]["spec"]
        elif document["kind"] == "InferenceService":
            yield str(path), document["spec"]["predictor"]


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    for path, document in OBJECTS:
        if document["kind"] in ("Deployment", "InferenceService") and path.parts[0] != "haproxy":
            spec = document["spec"].get("predictor") or document["spec"]["template"]["spec"]
            for container in spec["containers"]:
                yield str(path), {entry["name"]: entry["value"] for entry in container["env"] if entry.get("value")}
    for name, service in COMPOSE["services"].items():
        if service["image"] != COMPOSE["x-lossd"]["image"]:
            continue  # somebody else's, which watches
        yield (
            f"docker-compose.yml {name}",
            {
                name: str(value)
                for name, value in service.get("environment", {}).items()
                if name != "PGPASSWORD"  # which PostgreSQL's own library reads
            },
        )


def bytes_of(quantity: str) -> int:
    return int(TypeAdapter(ByteSize).validate_python(re.sub(r"(?<=[KMGT]i)$", "B", quantity)))


def settings_of(environment: Mapping[str, str]) -> Settings:
    values = {name.removeprefix("LOSSD_").lower(): value for name, value in environment.items()}
    return Settings(**{name: value for name, value in values.items() if not name.endswith("_file")})  # type: ignore[arg-type]


@pytest.mark.parametrize(("where", "environment"), [pytest.param(*e, id=e[0]) for e in environments()])
def test_environments_name_settings_and_values_that_they_take(where: str, environment: dict[str, str]) -> None:
    ours = {name: value for name, value in environment.items() if not name.startswith("OTEL_")}
    assert {name for name in ours if name.removeprefix("LOSSD_").lower() not in Settings.model_fields} == set()
    settings_of(ours)


@pytest.mark.parametrize(("where", "pod"), [pytest.param(*p, id=p[0]) for p in pods()])
def test_pods_fit_the_service(where: str, pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    settings = settings_of({entry["name"]: entry["value"] for entry in container["env"]})
    paths = openapi()["paths"]
    (port,) = container["ports"]
    assert port["containerPort"] == settings.port == int(re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[0])
    probes = [container[name]["httpGet"] for name in container if name.endswith("Probe")]
    assert len(probes) >= 2
    for probe in probes:
        assert "get" in paths[probe["path"]]
        assert probe["port"] in (port["containerPort"], port.get("name"))
    assert container["readinessProbe"]["httpGet"]["path"].endswith("/ready")
    assert container["livenessProbe"]["httpGet"]["path"].endswith("/live")

    memory = bytes_of(container["resources"]["limits"]["memory"])
    assert memory >= settings.queue_bytes + settings.cache_bytes + TORCH_BYTES
    assert settings.max_body_bytes < settings.queue_bytes
    assert int(container["resources"]["requests"]["cpu"]) > settings.threads

    assert "lifecycle" not in container
    assert settings.lame_duck_ms > 0
    assert pod["terminationGracePeriodSeconds"] * 1000 > settings.lame_duck_ms + settings.drain_timeout_ms

    assert pod["securityContext"]["runAsUser"] == int(re.findall(r"--uid (\d+)", DOCKERFILE)[0])
    assert pod["securityContext"]["runAsNonRoot"] is True
    secured = container["securityContext"]
    assert secured["readOnlyRootFilesystem"]
    assert not secured["allowPrivilegeEscalation"]
    assert secured["capabilities"]["drop"] == ["ALL"]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    assert mounted["tmp"] == re.findall(r"HOME=(\S+)", DOCKERFILE)[0]
    assert container["image"].partition(":")[0] == COMPOSE["x-lossd"]["image"]


def test_versions_are_the_package_s() -> None:
    from lossd import __version__

    (tag,) = {image["newTag"] for _, d in OBJECTS if d["kind"] == "Kustomization" for image in d.get("images", ())}
    assert tag == __version__
    (image,) = {
        c["image"] for _, d in OBJECTS if d["kind"] == "InferenceService" for c in d["spec"]["predictor"]["containers"]
    }
    assert image.partition(":")[2] == __version__


def test_keys_are_mounted_where_the_setting_says() -> None:
    pod = dict(pods())["kubernetes/base/deployment.yaml"]
    (container,) = pod["containers"]
    (file,) = (entry["value"] for entry in container["env"] if entry["name"] == "LOSSD_API_KEYS_FILE")
    folder, _, key = file.rpartition("/")
    assert {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "keys"} == {folder}
    assert f"--from-file={key}=" in (ROOT / "docs/deployment.md").read_text()


def test_prometheus_s_annotations_name_a_port_and_a_route() -> None:
    (deployment,) = (document for path, document in OBJECTS if str(path) == "kubernetes/base/deployment.yaml")
    template = deployment["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    (port,) = template["spec"]["containers"][0]["ports"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    assert annotations["prometheus.io/path"] in openapi()["paths"]


def test_compose_waits_longer_than_the_service_drains() -> None:
    grace_s = float(COMPOSE["x-lossd"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_timeout_ms"].default / 1000
    for name in ("lossd", "lossd-gpu", "lossd-replica"):
        service = COMPOSE["services"][name]
        assert service["stop_grace_period"] == COMPOSE["x-lossd"]["stop_grace_period"]
        lame_duck_ms = float(service["environment"].get("LOSSD_LAME_DUCK_MS", 0))
        assert grace_s * 1000 > Settings.model_fields["drain_timeout_ms"].default + lame_duck_ms
    assert COMPOSE["x-lossd"]["ports"] == ["127.0.0.1:8000:8000"]
