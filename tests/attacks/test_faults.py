"""Requests with as many faults as fit: refusing one costs no more than reading it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lossd.api.evaluate import plan_of
from lossd.api.http.texts import MAX_REQUEST_BYTES
from lossd.losses import REGISTRY
from lossd.request.fields import MAX_FIELDS
from lossd.request.options import Envelope, MetricOptions
from lossd.request.planning import make_plan
from lossd.runs.definition import RunDocument, RunFields
from lossd_client.errors import Problem, TooLarge

MIB = 1 << 20
REFUSED_S_PER_MIB = 0.025
SLOWER = 4  # than a processor of one's own: others share it, and its caches


def filled(begin: str, unit: str, end: str) -> bytes:
    """A text as long as may be, of which the unit is repeated."""
    times = (MAX_REQUEST_BYTES - len(begin) - len(end)) // (len(unit) + 1)
    return (begin + ",".join([unit] * times) + end).encode()


def numbered(begin: str, end: str, value: str = "1") -> bytes:
    """The same, of the fields of an object."""
    fields = ",".join(f'"f{i}":{value}' for i in range(MAX_REQUEST_BYTES // (len(value) + 11)))
    return (begin + fields + end).encode()


def long(begin: str, end: str) -> bytes:
    """The same, of one name."""
    return (begin + "a" * (MAX_REQUEST_BYTES - len(begin) - len(end)) + end).encode()


WEIGHTS = '{"loss":{"name":"cross_entropy","class_weight":['
FAULTY = {
    "negative weights": filled(WEIGHTS, "-1", "]}}"),
    "weights that are names": filled(WEIGHTS, '"a"', "]}}"),
    "weights that are lists": filled(WEIGHTS, "[0]", "]}}"),
    "weights or a number": filled('{"loss":{"name":"focal","alpha":[', "-1", "]}}"),
    "weights of labels": filled('{"loss":{"name":"bce","pos_weight":[', "null", "]}}"),
    "integers beyond int64, the last alone": filled(WEIGHTS, "1", ",18446744073709551615]}}"),
    "layers": filled('{"loss":{"name":"perceptual","layers":[', "0", "]}}"),
    "terms": filled('{"loss":{"name":"weighted_sum","terms":[', "0", "]}}"),
    "terms that are terms": filled('{"loss":{"name":"weighted_sum","terms":[', '{"loss":"mse"}', "]}}"),
    "metrics": filled('{"loss":{"name":"mse"},"metrics":{"names":[', "1", "]}}"),
    "metrics by their name": filled('{"loss":{"name":"mse"},"metrics":[', '"mae"', "]}"),
    "quantiles": filled('{"loss":{"name":"mse"},"metrics":{"quantiles":[', "7", "]}}"),
    "outputs": filled('{"loss":{"name":"mse"},"outputs":[', "1", "]}"),
    "outputs that are": filled('{"loss":{"name":"mse"},"outputs":[', '"loss"', "]}"),
    "fields": numbered('{"loss":{"name":"mse"},', "}"),
    "fields of the loss": numbered('{"loss":{"name":"mse",', "}}"),
    "fields of a term": numbered('{"loss":{"name":"weighted_sum","terms":[{"loss":"mse",', "}]}}"),
    "inputs of a term": numbered('{"loss":{"name":"weighted_sum","terms":[{"loss":"mse","inputs":{', "}}]}}"),
    "parameters of a formula": numbered('{"loss":{"name":"expression","formula":"a","parameters":{', "}}}", '"x"'),
    "fields of the metrics": numbered('{"loss":{"name":"mse"},"metrics":{', "}}"),
    "fields of the gradient": numbered('{"loss":{"name":"mse"},"gradient":{', "}}"),
    "a loss's name": long('{"loss":"', '"}'),
    "a task's name": long('{"task":"', '"}'),
    "a metric's name": long('{"task":"binary","metrics":["', '"]}'),
    "a field's name": long('{"loss":{"name":"mse","', '":1}}'),
    "an output's name": long('{"loss":"mse","outputs":["gradient.', '"]}'),
}


@pytest.mark.parametrize("faults", FAULTY)
def test_many_faults_cost_no_more_than_the_text(faults: str) -> None:
    check_refusal(lambda: plan_of(FAULTY[faults]))


def check_refusal(parse: Callable[[], object]) -> None:
    """Fail unless a longest text is refused shortly, and at the third attempt at the latest within its time."""
    limit_s = SLOWER * REFUSED_S_PER_MIB * MAX_REQUEST_BYTES / MIB
    for _ in range(3):
        begin = time.thread_time()
        with pytest.raises(Problem) as refused:
            parse()
        spent_s = time.thread_time() - begin
        if spent_s <= limit_s:
            break
    assert spent_s <= limit_s
    assert refused.value.detail.isprintable()
    assert len(json.dumps(refused.value.to_json())) < 4096


DEFINITIONS = {
    "values": filled('{"slices":{"site":[', '"a"', "]}}"),
    "values that are numbers": filled('{"slices":{"site":[', "1", "]}}"),
    "different values": numbered('{"slices":{"site":[', "]}}").replace(b":1", b""),
    "crossings": filled('{"crossed":[', "1", "]}"),
    "slices of a crossing": filled('{"crossed":[[', '"a"', "]]}"),
    "numbers in a crossing": filled('{"crossed":[[', "1", "]]}"),
    "slices": numbered('{"slices":{', "}}", '["a"]'),
    "tags": numbered('{"tags":{', "}}", '"a"'),
}


@pytest.mark.parametrize("faults", DEFINITIONS)
def test_many_faults_of_a_definition_cost_no_more_than_its_text(faults: str) -> None:
    document = {"task": "binary", **json.loads(DEFINITIONS[faults])}
    check_refusal(lambda: RunDocument.parse(document))


def test_many_unknown_inputs_cost_no_more_than_reading_them() -> None:
    """A thousand names are like each of two hundred: to compare them all takes five seconds."""
    plan = make_plan({"loss": {"name": "expression", "formula": "+".join(f"scores{n}" for n in range(200))}})
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {f"scores{n + 1000}": ("float32", (1,)) for n in range(1000)}
    begin = time.thread_time()
    with pytest.raises(Problem, match="needs the input scores0"):
        plan.job(inputs)
    with pytest.raises(Problem, match="takes no input 'scores1000'"):
        plan.job({**{f"scores{n}": ("float32", (1,)) for n in range(200)}, **inputs})
    assert time.thread_time() - begin < 0.5


def test_the_gradients_of_a_composed_loss_are_not_searched_for_each_input() -> None:
    class Names(tuple[str, ...]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError("a request may have thousands")

    term = make_plan({"loss": {"name": "weighted_sum", "terms": [{"loss": "mse"}]}}).terms[0]
    assert term.with_outputs(Names(("prediction", "other")), ()).plan.gradients == ("prediction",)


def test_a_request_has_a_length_beside_its_tensors() -> None:
    with pytest.raises(TooLarge, match="beside its tensors"):
        plan_of(filled(WEIGHTS, "1", "]}}") + b" " * 100)


def test_an_object_has_so_many_fields_and_no_more() -> None:
    def parameters(count: int) -> bytes:
        loss = {"name": "expression", "formula": "a", "parameters": {f"f{i}": 1 for i in range(count)}}
        return json.dumps({"loss": loss}).encode()

    with pytest.raises(Problem, match="may have 1024 fields, this one has 1025") as refused:
        plan_of(parameters(MAX_FIELDS + 1))
    assert refused.value.errors[0]["pointer"] == "/loss/parameters"
    with pytest.raises(Problem, match="does not appear in the formula"):
        plan_of(parameters(MAX_FIELDS))


MODELS = {"Envelope": Envelope, "MetricOptions": MetricOptions, "RunFields": RunFields}


def lists(schema: Any) -> Iterator[dict[str, Any]]:
    """The lists within a model, as Pydantic's core has them."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for part in schema.values():
            yield from lists(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from lists(part)


def test_every_list_stops_at_its_first_fault() -> None:
    models = {**MODELS, **{name: loss.model for name, loss in REGISTRY.items()}}
    found = {name: [*lists(model.__pydantic_core_schema__)] for name, model in models.items()}
    assert sum(map(len, found.values())) > 10
    assert {
        name: slow for name, parts in found.items() if (slow := [part for part in parts if not part.get("fail_fast")])
    } == {}
