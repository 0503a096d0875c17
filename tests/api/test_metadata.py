"""A request made from a model's metadata alone, as by perf_analyzer, gets an answer that matches the metadata."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import httpx
import pytest

from lossd.api.inference.models import models
from rows import gathering
from serving import running

NEEDS = {
    "weighted_sum": "loss.terms is required",
    "uncertainty": "loss.terms is required",
    "curriculum": "loss.loss is required",
    "expression": "loss.formula is required",
    "orpo": "finite values < 0 expected",
}
"""What some models say they need besides tensors of ones; without parameters they have no inputs to be told of."""

NEEDS_BY_DEFAULT = {"policy_gradient": 'needs sampled for the form "ppo"'}
"""The optional inputs that some models say they need, unless a parameter says otherwise."""

COUNTS = {"tp", "fp", "fn", "tn", "support", "confusion_matrix", "empty_queries"}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        yield http


def made_up(tensor: dict[str, Any], length: int) -> dict[str, Any]:
    """A tensor of ones, which nearly every input takes: as a number, a probability, a class, a label or a weight."""
    shape = [length if axis == -1 else axis for axis in tensor["shape"]]
    return {**tensor, "shape": shape, "data": [1] * prod(shape)}


# Each length and each choice of inputs is tried once.
@pytest.mark.parametrize(("optional", "length"), [(False, 4), (True, 6)], ids=["needed", "all"])
def test_a_request_made_from_the_metadata_is_answered_as_they_say(
    http: httpx.Client, optional: bool, length: int
) -> None:
    with gathering() as named:
        for name in models():
            with named(name):
                check(http, name, optional, length)


def check(http: httpx.Client, name: str, optional: bool, length: int) -> None:
    metadata = http.get(f"/v2/models/{name}").json()
    may_lack = {i["name"]: i["optional"] for i in http.get(f"/v2/models/{name}/config").json()["input"]}
    # Lengths stand in place of a mask: a request has one of them.
    sent = [i for i in metadata["inputs"] if i["name"] != "lengths" and (optional or not may_lack[i["name"]])]
    inputs = [made_up(i, length) for i in sent]
    outputs = [{"name": output["name"]} for output in metadata["outputs"]]
    answer = http.post(f"/v2/models/{name}/infer", json={"inputs": inputs, "outputs": outputs})
    needed = NEEDS | ({} if optional else NEEDS_BY_DEFAULT)
    if name in needed:
        assert answer.status_code == 400
        assert needed[name] in answer.json()["error"]
        return
    assert answer.is_success, answer.text
    weighted = any(i["name"] == "sample_weight" for i in inputs)
    for spec, found in zip(metadata["outputs"], answer.json()["outputs"], strict=True):
        # Counts of weighted samples are no integers.
        datatype = "FP64" if weighted and spec["name"] in COUNTS else spec["datatype"]
        assert (found["name"], found["datatype"]) == (spec["name"], datatype)
        assert len(found["shape"]) == len(spec["shape"]), spec["name"]
        assert all(axis in (-1, found_axis) for axis, found_axis in zip(spec["shape"], found["shape"], strict=True))
