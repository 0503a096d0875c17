"""What the client sends about slices, clusters and comparisons, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from lossd_client import AsyncLossClient, Comparison, Comparisons, LossClient
from lossd_client.errors import InvalidRequest, NotComparable, UnreadableAnswer
from lossd_client.run_messages import RunResult, compose_batch, slice_codes
from lossd_client.wire import safetensors

NUMBERS = {"baseline": 0.8, "value": 0.9, "difference": 0.1, "low": 0.05, "high": 0.15, "standard_error": 0.02}
DIFFERENCE = {**NUMBERS, "p": 0.001, "p_holm": 0.002, "better": "higher", "verdict": "b"}
SIDELESS = {**NUMBERS, "baseline": "NaN", "p": None, "p_holm": None, "better": None, "verdict": None}


def answer(*runs: str) -> dict[str, Any]:
    """A service's answer about runs."""
    slices = [{"slice": {"site": "NaN"}, "rows": 7, "metrics": {"f1": DIFFERENCE}}]
    return {
        "level": 0.95,
        "paired": True,
        "groups": 64,
        "rows": 100,
        "runs": [
            {"run": run, "owner": "", "provisional": run == "b", "rows": 100, "values": {"f1": 0.8}} for run in runs
        ],
        "comparisons": [
            {
                "run": run,
                "sentence": f"{run} is better",
                "metrics": {"f1": DIFFERENCE, "bias": SIDELESS},
                "slices": slices,
                "warnings": [],
            }
            for run in runs[1:]
        ],
    }


class Stream(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that has not been read, as from a socket."""

    def __init__(self, document: Any) -> None:
        self.content = json.dumps(document).encode()

    def __iter__(self) -> Iterator[bytes]:
        yield self.content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content


def client(answering: Callable[[httpx.Request], Any]) -> LossClient:
    def respond(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Stream(answering(request)))

    return LossClient("http://service", http=httpx.Client(transport=httpx.MockTransport(respond)))


def test_two_runs_are_one_comparison() -> None:
    urls: list[httpx.URL] = []

    def answering(request: httpx.Request) -> Any:
        urls.append(request.url)
        return answer("a", "b")

    found = client(answering).compare("a", "b", metrics=["f1", "bias"], slices=True, level=0.99, owner=[None, "bob"])
    assert isinstance(found, Comparison)
    assert urls[0].path == "/v1/compare"
    assert urls[0].params.multi_items() == [
        ("run", "a"), ("run", "b"), ("owner", ""), ("owner", "bob"), ("metrics", "f1,bias"), ("level", "0.99"),
        ("slices", "true"),
    ]  # fmt: skip
    assert (found.baseline, found.run, found.level, found.paired, found.rows) == ("a", "b", 0.95, True, 100)
    assert found.provisional
    assert found["f1"].verdict == "b"
    assert found["f1"].low == 0.05
    assert found["bias"].baseline is not None
    assert math.isnan(found["bias"].baseline)
    assert found["bias"].verdict is None
    assert str(found) == "b is better"
    assert found.slice(site="NaN")["f1"].difference == 0.1  # a name, no number
    assert found.slice(site="NaN").rows == 7
    with pytest.raises(KeyError, match="there is no slice site=B; there are site=NaN"):
        found.slice(site="B")
    with pytest.raises(KeyError, match="recall was not compared; there are f1, bias"):
        found["recall"]


def test_three_runs_are_two_comparisons() -> None:
    found = client(lambda _: answer("a", "NaN", "c")).compare("a", "NaN", "c")
    assert isinstance(found, Comparisons)
    assert [(each.baseline, each.run) for each in found.comparisons] == [("a", "NaN"), ("a", "c")]
    assert found.runs[0]["values"]["f1"] == 0.8


def test_the_async_client_asks_the_same() -> None:
    queries: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        queries.append(request.url.query.decode())
        return httpx.Response(200, stream=Stream(answer("a", "b")))

    async def scenario() -> Comparison:
        transport = httpx.AsyncClient(transport=httpx.MockTransport(respond))
        async with AsyncLossClient("http://service", http=transport) as lossd:
            return await lossd.compare("a", "b", classes=True, unpaired=True)

    assert asyncio.run(scenario())["f1"].better == "higher"
    assert queries == ["run=a&run=b&classes=true&unpaired=true"]


def test_an_answer_of_another_program_is_told() -> None:
    with pytest.raises(UnreadableAnswer, match="is it lossd"):
        client(lambda _: {"runs": []}).compare("a", "b")


def test_a_name_that_is_none_is_refused_before_it_is_sent() -> None:
    with pytest.raises(InvalidRequest, match="not the name of a run"):
        client(lambda _: {}).compare("a", "b/c")


def test_runs_that_are_not_comparable_are_named() -> None:
    apart = [{"run": "b", "owner": "", "differs": ["targets"], "detail": "other targets"}]

    def respond(request: httpx.Request) -> httpx.Response:
        problem = NotComparable("the runs cannot be compared", differs=["targets"], runs=apart)
        return httpx.Response(
            409, stream=Stream(problem.to_json()), headers={"content-type": "application/problem+json"}
        )

    lossd = LossClient("http://service", http=httpx.Client(transport=httpx.MockTransport(respond)))
    with pytest.raises(NotComparable) as caught:
        lossd.compare("a", "b")
    assert caught.value.runs == apart


def sent(**arguments: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The request and the arrays of a composed batch."""
    arguments = {"first": 0, "sample_id": None, "declared": {"site": ["A", "B"]}, **arguments}
    body = compose_batch(np.zeros(3, "f4"), np.zeros(3, "i8"), **arguments)
    tensors, metadata = safetensors.decode(b"".join(body.pieces))
    return json.loads(metadata.get("request", "{}")), {name: tensor.numpy() for name, tensor in tensors.items()}


def test_a_slice_of_a_batch_is_a_field_and_one_of_rows_an_input() -> None:
    request, arrays = sent(slices={"site": "A"})
    assert request == {"first": 0, "slices": {"site": "A"}}
    assert "slice.site" not in arrays
    for values in (["B", None, "A"], np.array([1, -1, 0], "i4"), [1, -1, 0]):
        request, arrays = sent(slices={"site": values})
        assert request == {"first": 0}
        assert arrays["slice.site"].tolist() == [1, -1, 0]
        assert arrays["slice.site"].dtype == np.int64
    assert sent(slices={"site": None})[0] == {"first": 0, "slices": {"site": None}}


def test_clusters_are_sent_as_int64() -> None:
    _, arrays = sent(cluster_id=np.array([3, 3, 4], "u2"))
    assert arrays["cluster_id"].dtype == np.int64
    assert arrays["cluster_id"].tolist() == [3, 3, 4]
    with pytest.raises(TypeError, match="cluster_id must hold integers, not float64"):
        sent(cluster_id=[0.5, 1.0, 2.0])


def test_values_of_slices_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="the slice site has no value 'C'; its values are A, B, and None for none"):
        slice_codes("site", ["A", "C"], ["A", "B"])
    with pytest.raises(InvalidRequest, match="the run declares no slice sex; declare it"):
        sent(slices={"sex": ["f", "f", "m"]})
    with pytest.raises(TypeError, match="must be texts or codes, not float64"):
        slice_codes("site", [0.5], ["A"])


def test_a_result_has_intervals_and_slices() -> None:
    interval = {"low": 0.7, "high": 0.9, "standard_error": 0.05}
    result = {
        "provisional": False,
        "metrics": {"f1": 0.8},
        "level": 0.95,
        "intervals": {"f1": interval},
        "slices": [{"slice": {"site": "A"}, "counted": {"rows": 9}, "metrics": {"f1": 0.75}, "intervals": {}}],
        "worst": {"f1": {"slice": {"site": "A"}, "value": 0.75}},
        "gap": {"f1": 0.1},
    }
    found = RunResult.of({"run": "a", "status": "sealed", "counted": {"rows": 9}, "result": result})
    assert found.intervals["f1"].low == 0.7
    assert found.slice(site="A").metrics.f1 == 0.75
    assert found.worst["f1"].slice.site == "A"
    assert (found.level, found.gap["f1"]) == (0.95, 0.1)
    before = RunResult.of({"run": "a", "status": "open", "counted": {"rows": 0}})
    assert (before.level, before.intervals, before.slices) == (None, {}, [])
