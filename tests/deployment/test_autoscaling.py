"""The triggers of ``deploy`` want the right number of replicas for what a Prometheus says."""

from __future__ import annotations

import json
import math
import re
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
SCALED = yaml.safe_load((ROOT / "deploy/kubernetes/components/keda/scaled-object.yaml").read_text())["spec"]
KSERVE = yaml.safe_load((ROOT / "deploy/kserve/inference-service.yaml").read_text())["spec"]["predictor"]
WINDOW_S = 60.0

Page = str
Sample = tuple[str, str, Mapping[str, str], float]


class Prometheus(BaseHTTPRequestHandler):
    """Answers the two kinds of query that the triggers have, of pages that were scraped a minute apart."""

    pages: Mapping[str, tuple[Page, Page]] = {}

    def do_GET(self) -> None:
        (query,) = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["query"]
        result = [{"metric": {}, "value": [0, str(self.evaluated(query))]}]
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""

    def evaluated(self, query: str) -> float:
        """Return the value of a query."""
        if gauge := re.fullmatch(r'sum\((\w+)\{job="lossd"\}\)', query):
            return sum(value for _, now in self.pages.values() for value in values(now, gauge[1]))
        counter = re.fullmatch(r'sum\(avg by \(instance\) \(rate\((\w+)\{job="lossd"\}\[1m\]\)\)\)', query)
        assert counter is not None, query
        total = 0.0
        for before, now in self.pages.values():
            pairs = list(zip(values(before, counter[1]), values(now, counter[1]), strict=True))
            total += sum(b - a for a, b in pairs) / len(pairs) / WINDOW_S
        return total


def values(page: Page, name: str) -> list[float]:
    """Return the values of a metric on a page of one instance."""
    families = text_string_to_metric_families(page)
    found = [sample.value for family in families for sample in family.samples if sample.name == name]
    assert found, f"{name} is not on the page"
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def page(worker_s: list[float], front_s: list[float], backlog_s: float) -> Page:
    """Return what ``/metrics`` of a replica says: its workers' and its fronts' busy times, and its backlog."""
    lines = ["# TYPE lossd_worker_busy_seconds counter"]
    lines += [f'lossd_worker_busy_seconds_total{{worker="{n}"}} {value}' for n, value in enumerate(worker_s)]
    lines += ["# TYPE lossd_front_busy_seconds counter"]
    lines += [f'lossd_front_busy_seconds_total{{front="{n}"}} {value}' for n, value in enumerate(front_s)]
    lines += ["# TYPE lossd_backlog_seconds gauge", f"lossd_backlog_seconds {backlog_s}", ""]
    return "\n".join(lines)


def value_of(address: str, query: str) -> float:
    """Return the value of a query, as KEDA's Prometheus scaler asks for it."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        (one,) = json.load(answer)["data"]["result"]
    return float(one["value"][1])


def replica_count(address: str) -> int:
    """Return the replicas that Kubernetes wants: of an AverageValue, the value over the threshold, rounded up."""
    triggers = [each["metadata"] for each in SCALED["triggers"]]
    most = max(math.ceil(value_of(address, each["query"]) / float(each["threshold"]) - 1e-9) for each in triggers)
    return min(max(most, SCALED["minReplicaCount"]), SCALED["maxReplicaCount"])


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        # Busy seconds within a minute, of each replica: its workers, its fronts; seconds of work that wait.
        pytest.param([([54.0], [30.0], 0.0), ([54.0], [30.0], 0.0)], 3, id="1.8 busy workers"),
        pytest.param([([30.0], [57.0], 0.0), ([30.0], [57.0], 0.0)], 4, id="1.9 busy fronts"),
        pytest.param([([60.0], [6.0], 2.0), ([60.0], [6.0], 1.9)], 8, id="3.9 s of work wait"),
        pytest.param([([3.0], [3.0], 0.0), ([0.0], [0.0], 0.0)], 2, id="nothing to do: the least"),
        pytest.param([([60.0], [60.0], 100.0), ([60.0], [60.0], 100.0)], 16, id="no end of work: the most"),
        # Each of two replicas has two GPUs and four fronts, all of them busy for 90% of the time.
        pytest.param([([54.0] * 2, [54.0] * 4, 0.0), ([54.0] * 2, [54.0] * 4, 0.0)], 3, id="several a replica"),
        pytest.param([([36.0], [12.0], 0.0)] * 4, 4, id="four at 60% stay four"),
    ],
)
def test_keda_wants_the_replicas_that_the_busy_time_asks_for(
    address: str, replicas: list[tuple[list[float], list[float], float]], expected: int
) -> None:
    Prometheus.pages = {
        f"replica-{number}": (
            page([1000.0] * len(workers), [500.0] * len(fronts), 0.0),
            page([1000.0 + each for each in workers], [500.0 + each for each in fronts], backlog_s),
        )
        for number, (workers, fronts, backlog_s) in enumerate(replicas)
    }
    assert replica_count(address) == expected


def test_kserve_scales_by_the_same_queries() -> None:
    ours = [(each["metadata"]["query"], each["metadata"]["threshold"]) for each in SCALED["triggers"]]
    external = [each["external"] for each in KSERVE["autoScaling"]["metrics"]]
    assert [(each["metric"]["query"], each["target"]["value"]) for each in external] == ours
    assert {each["metric"]["backend"] for each in external} == {"prometheus"}
    bounds = (KSERVE["minReplicas"], KSERVE["maxReplicas"])
    assert bounds == (SCALED["minReplicaCount"], SCALED["maxReplicaCount"])
    down = SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert KSERVE["autoScaling"]["behavior"]["scaleDown"] == down
