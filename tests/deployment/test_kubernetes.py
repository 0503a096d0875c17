"""What kustomize makes of ``deploy/kubernetes``: valid objects, whose names, labels and ports fit together."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBECTL = shutil.which("kubectl")
NEWEST, OLDEST = "1.37", "1.31"  # trafficDistribution is on by default from 1.31 on
NAME = "app.kubernetes.io/name"

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="kubectl, which has kustomize, is not installed")

# Every field of objects of other projects that is used, as their references have it, and nothing else.
FIELDS = {
    ("keda.sh/v1alpha1", "ScaledObject"): {
        "scaleTargetRef.name", "minReplicaCount", "maxReplicaCount", "pollingInterval", "fallback.failureThreshold",
        "fallback.replicas", "advanced.horizontalPodAutoscalerConfig.behavior.scaleUp.stabilizationWindowSeconds",
        "advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.stabilizationWindowSeconds", "triggers.type",
        "triggers.name", "triggers.metadata.serverAddress", "triggers.metadata.query", "triggers.metadata.threshold",
    },
    ("monitoring.coreos.com/v1", "ServiceMonitor"): {
        "jobLabel", f"selector.matchLabels.{NAME}", "selector.matchLabels.app.kubernetes.io/component",
        "endpoints.port", "endpoints.path", "endpoints.interval",
    },
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): {
        "parentRefs.name", "rules.backendRefs.name", "rules.backendRefs.port", "rules.timeouts.request",
        "rules.timeouts.backendRequest",
    },
    ("gateway.envoyproxy.io/v1alpha1", "BackendTrafficPolicy"): {
        "targetRefs.group", "targetRefs.kind", "targetRefs.name", "loadBalancer.type", "connection.bufferLimit",
        "tcpKeepalive.idleTime", "tcpKeepalive.interval", "tcpKeepalive.probes",
        "retry.numRetries", "retry.retryOn.triggers", "retry.retryOn.httpStatusCodes", "healthCheck.active.type",
        "healthCheck.active.timeout", "healthCheck.active.interval", "healthCheck.active.unhealthyThreshold",
        "healthCheck.active.healthyThreshold", "healthCheck.active.http.path",
        "healthCheck.active.http.expectedStatuses",
        "circuitBreaker.maxConnections", "circuitBreaker.maxPendingRequests", "circuitBreaker.maxParallelRequests",
    },
}  # fmt: skip


def built(folder: Path) -> list[dict[str, Any]]:
    """Return the objects that ``kubectl apply -k`` would send."""
    done = subprocess.run([str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy deploy, and let the overlay ``scaled`` use every component that it offers."""
    copy = tmp_path_factory.mktemp("everything") / "deploy"
    shutil.copytree(DEPLOY, copy)
    overlay = copy / "kubernetes/scaled/kustomization.yaml"
    text = overlay.read_text()
    assert text.count("  # - ../components/") == 3
    overlay.write_text(text.replace("  # - ../components/", "  - ../components/"))
    return copy / "kubernetes/scaled"


@pytest.fixture(params=["kubernetes", "kubernetes/gpu", "kubernetes/scaled", "everything"])
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    if request.param == "everything":
        return list(once(request.getfixturevalue("everything")))
    return list(once(DEPLOY / request.param))


@cache
def once(folder: Path) -> tuple[dict[str, Any], ...]:
    return tuple(built(folder))


@cache
def validate(document: str, version: str) -> None:
    """Raise if an object, as JSON, is none of this version of Kubernetes; several overlays have it."""
    kubernetes_validate.validate(json.loads(document), version, strict=True)


def kind(objects: list[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == name}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every value that is neither an object nor a list of objects."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for each in value:
            yield from leaves(each, path)
    else:
        yield path


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_has_every_field_and_the_fields_of_others_are_theirs(
    objects: list[dict[str, Any]], version: str
) -> None:
    for each in objects:
        fields = FIELDS.get((each["apiVersion"], each["kind"]))
        if fields is None:
            validate(json.dumps(each), version)
        else:
            assert set(leaves(each["spec"])) <= fields


def test_a_misspelt_field_is_found() -> None:
    (deployment,) = (each for each in once(DEPLOY / "kubernetes") if each["kind"] == "Deployment")
    spec = dict(deployment["spec"]) | {"replica": 2}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment | {"spec": spec}, NEWEST, strict=True)


def selected(pods: Mapping[str, dict[str, Any]], labels: Mapping[str, str]) -> set[str]:
    return {
        name for name, each in pods.items() if labels.items() <= each["spec"]["template"]["metadata"]["labels"].items()
    }


def test_selectors_find_pods_and_names_find_objects(objects: list[dict[str, Any]]) -> None:
    pods, services = kind(objects, "Deployment"), kind(objects, "Service")
    containers = {name: each["spec"]["template"]["spec"]["containers"][0] for name, each in pods.items()}
    for name, each in pods.items():
        assert selected(pods, each["spec"]["selector"]["matchLabels"]) == {name}
        for constraint in each["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(pods, constraint["labelSelector"]["matchLabels"]) == {name}
        maps = [v["configMap"]["name"] for v in each["spec"]["template"]["spec"]["volumes"] if "configMap" in v]
        assert set(maps) <= kind(objects, "ConfigMap").keys()
    for service in services.values():
        (name,) = selected(pods, service["spec"]["selector"])
        ports = {port["name"] for port in containers[name]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    # The proxy takes the place of the replicas behind the Service, and finds them by the other Service.
    assert selected(pods, services["lossd"]["spec"]["selector"]) == {"lossd-proxy" if len(pods) > 1 else "lossd"}
    assert selected(pods, services["lossd-each"]["spec"]["selector"]) == {"lossd"}
    assert services["lossd-each"]["spec"]["clusterIP"] == "None"
    if "lossd-proxy" in containers:
        (replicas,) = (e["value"] for e in containers["lossd-proxy"]["env"] if e["name"] == "PROXY_REPLICAS")
        assert (
            replicas
            == f"lossd-each.$(NAMESPACE).svc.cluster.local:{services['lossd-each']['spec']['ports'][0]['port']}"
        )
    for budget in kind(objects, "PodDisruptionBudget").values():
        assert len(selected(pods, budget["spec"]["selector"]["matchLabels"])) == 1
        assert budget["spec"]["maxUnavailable"] == 1  # whatever the number of replicas, a drain ends
    for each in kind(objects, "HTTPRoute").values():
        (reference,) = each["spec"]["rules"][0]["backendRefs"]
        assert reference["port"] in {port["port"] for port in services[reference["name"]]["spec"]["ports"]}
    for each in kind(objects, "BackendTrafficPolicy").values():
        (target,) = each["spec"]["targetRefs"]
        assert target["name"] in kind(objects, target["kind"])
    for each in kind(objects, "ScaledObject").values():
        scaled = pods[each["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in scaled["spec"]
    for each in kind(objects, "ServiceMonitor").values():
        labels = each["spec"]["selector"]["matchLabels"]
        (found,) = (s for s in services.values() if labels.items() <= s["metadata"]["labels"].items())
        assert each["spec"]["endpoints"][0]["port"] in {port["name"] for port in found["spec"]["ports"]}
        assert found["metadata"]["labels"][each["spec"]["jobLabel"]] == "lossd"


def test_policies_open_the_ports_that_are_used_and_no_others(objects: list[dict[str, Any]]) -> None:
    pods = kind(objects, "Deployment")
    opened: dict[str, list[int]] = {}
    for name, policy in kind(objects, "NetworkPolicy").items():
        (pod,) = selected(pods, policy["spec"]["podSelector"]["matchLabels"])
        ports = {port["containerPort"] for port in pods[pod]["spec"]["template"]["spec"]["containers"][0]["ports"]}
        for rule in policy["spec"].get("ingress", ()):
            assert rule["from"] != []
            assert {port["port"] for port in rule["ports"]} <= ports, name
        out = [port["port"] for rule in policy["spec"].get("egress", ()) for port in rule["ports"]]
        opened.setdefault(pod, []).extend(out)
        if name == pod:
            assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]  # what no rule allows is refused
    components = {"lossd-to-postgres": {5432, 53}, "lossd-to-collector": {4318, 53}}
    expected = {p for name, ports in components.items() if name in kind(objects, "NetworkPolicy") for p in ports}
    assert set(opened["lossd"]) == expected
    assert set(opened.get("lossd-proxy", [])) <= {8000, 53}


def test_replicas_are_spread_over_nodes_and_zones(objects: list[dict[str, Any]]) -> None:
    spread = kind(objects, "Deployment")["lossd"]["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"] for each in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]


def test_a_gpu_s_node_is_tolerated_and_an_update_needs_no_spare_gpu() -> None:
    deployment = kind(list(once(DEPLOY / "kubernetes/gpu")), "Deployment")["lossd"]
    pod = deployment["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert deployment["spec"]["replicas"] >= 2


def test_runs_are_off_or_in_the_database_that_a_secret_names(everything: Path) -> None:
    def variables(folder: Path) -> dict[str, dict[str, Any]]:
        pod = kind(list(once(folder)), "Deployment")["lossd"]["spec"]["template"]["spec"]
        return {each["name"]: each for each in pod["containers"][0]["env"]}

    assert variables(DEPLOY / "kubernetes")["LOSSD_RUNS"]["value"] == "off"
    found = variables(everything)
    assert found["LOSSD_RUNS"].keys() == {"name", "valueFrom"}
    secrets = [found[name]["valueFrom"]["secretKeyRef"] for name in ("LOSSD_RUNS", "PGPASSWORD")]
    assert secrets == [{"name": "lossd-postgres", "key": "url"}, {"name": "lossd-postgres", "key": "password"}]
    text = (DEPLOY / "kubernetes/components/postgres/kustomization.yaml").read_text()
    assert "generic lossd-postgres --from-literal=url=" in text
    assert "--from-literal=password=" in text
