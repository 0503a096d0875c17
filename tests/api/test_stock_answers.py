"""What stock clients of the Open Inference Protocol send and can read: fields of their own, strict JSON, every name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from lossd.api.catalogue import LossList, LossPage, MetricCatalogue, MetricList
from lossd_client.wire import oip
from serving import running


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        yield http


def entry(name: str, values: Any, datatype: str = "FP32", **fields: Any) -> dict[str, Any]:
    array = np.array(values)
    return {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist(), **fields}


def strict(text: str) -> Any:
    """JSON as Java, Go and browsers read it."""

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_metric_that_is_not_defined_is_null_in_json_and_nan_in_bytes(http: httpx.Client) -> None:
    """No entry is positive, so that recall is 0/0."""
    document: dict[str, Any] = {"inputs": [entry("prediction", [0.1, 0.2]), entry("target", [0.0, 0.0])]}
    answer = http.post("/v2/models/bce/infer", json=document)
    found = {output["name"]: output for output in strict(answer.text)["outputs"]}
    assert found["recall"] == {"name": "recall", "datatype": "FP64", "shape": [], "data": [None]}
    assert math.isnan(np.array(found["recall"]["data"], np.float64)[0])  # how tritonclient makes arrays of lists
    assert math.isnan(oip.decode_response(answer.content, None).outputs["recall"].numpy())
    document["parameters"] = {"binary_data_output": True}
    answer = http.post("/v2/models/bce/infer", json=document)
    response = oip.decode_response(answer.content, int(answer.headers[oip.HEADER_LENGTH]))
    assert math.isnan(response.outputs["recall"].numpy())


def test_what_other_servers_clients_add_is_accepted(http: httpx.Client) -> None:
    mine = {"content_type": "np", "headers": {"a": "b"}}
    document = {
        "model_name": "mse", "model_version": None, "id": None, "parameters": {**mine, "binary_data_output": None},
        "inputs": [entry(name, [1.0, 2.0], parameters=mine) for name in ("prediction", "target")],
        "outputs": [{"name": "loss", "parameters": mine}],
    }  # fmt: skip
    answer = http.post("/v2/models/mse/infer", json=document)
    assert answer.is_success, answer.text
    assert strict(answer.text)["outputs"] == [{"name": "loss", "datatype": "FP64", "shape": [], "data": [0.0]}]
    document["inputs"][0]["parameters"] = {"gamma": 2}  # type: ignore[index]
    assert http.post("/v2/models/mse/infer", json=document).status_code == 400


def test_every_name_of_a_series_in_the_metadata_can_be_sent_and_asked_for(http: httpx.Client) -> None:
    metadata = http.get("/v2/models/feature_matching").json()
    names = [tensor["name"] for kind in ("inputs", "outputs") for tensor in metadata[kind]]
    assert not any("*" in name for name in names)
    values = np.ones((2, 3))
    inputs = [entry(name, values) for name in ("prediction.0", "target.0", "prediction.1", "target.1")]
    outputs = [{"name": tensor["name"]} for tensor in metadata["outputs"]]
    answer = http.post("/v2/models/feature_matching/infer", json={"inputs": inputs, "outputs": outputs})
    assert answer.is_success, answer.text
    assert [output["name"] for output in answer.json()["outputs"]] == [output["name"] for output in outputs]
    request = {"inputs": inputs, "outputs": [{"name": "gradient.prediction.*"}]}
    answer = http.post("/v2/models/feature_matching/infer", json=request)
    assert answer.is_success, answer.text
    found = [output["name"] for output in answer.json()["outputs"]]
    assert found == ["gradient.prediction.0", "gradient.prediction.1"]


def test_what_generated_clients_send_for_what_nobody_set_is_as_if_it_was_not_sent(http: httpx.Client) -> None:
    inputs = {"prediction": [1.0, 2.0], "target": [0.0, 4.0]}
    plain = http.post("/v1/evaluate", json={"loss": {"name": "huber"}, "inputs": inputs}).json()
    nothing = {
        "loss": {"name": "huber", "delta": None, "reduction": None},
        "inputs": {**inputs, "sample_weight": None},
        "task": None,
        "outputs": None,
        "gradient": {"clip_norm": None, "clip_scope": None, "clip_value": None, "dtype": None},
        "metrics": {"names": None, "k": None, "bins": None, "threshold": None, "quantiles": None},
    }
    for request in (nothing, {**nothing, "gradient": None, "metrics": None}):
        answer = http.post("/v1/evaluate", json=request)
        assert answer.json() == plain
    # Where null is a value, it is that value, whatever the default is.
    classes = {"prediction": [[0.0, 1.0]], "target": [-100]}
    refused = http.post(
        "/v1/evaluate", json={"loss": {"name": "cross_entropy", "ignore_index": None}, "inputs": classes}
    )
    assert refused.status_code == 422
    missing = http.post("/v1/evaluate", json={"loss": {"name": "huber"}, "inputs": {**inputs, "target": None}})
    assert missing.status_code == 422
    assert "target" in missing.json()["detail"]


def test_mlserver_s_arrays_are_read_as_its_codec_writes_them(http: httpx.Client) -> None:
    mine = {"parameters": {"content_type": "np"}}
    inputs = [entry("prediction", [[2.0, 0.0], [0.0, 0.0]], **mine), entry("target", [[0], [1]], "INT64", **mine)]
    document = {"inputs": inputs, "outputs": [{"name": "loss"}]}
    answer = http.post("/v2/models/cross_entropy/infer", json=document)
    expected = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    assert answer.json()["outputs"][0]["data"] == [pytest.approx(expected, rel=1e-6)]
    del inputs[1]["parameters"]  # from anybody else it is the wrong shape
    assert http.post("/v2/models/cross_entropy/infer", json=document).status_code == 400
    # Where two axes will do, they stay.
    inputs = [entry(name, [[1.0], [2.0]], **mine) for name in ("prediction", "target")]
    inputs[0]["data"] = [1.0, None]
    document = {"inputs": inputs, "outputs": [{"name": "gradient"}], "parameters": {"binary_data_output": True}}
    answer = http.post("/v2/models/mse/infer", json=document)
    gradient = oip.decode_response(answer.content, int(answer.headers[oip.HEADER_LENGTH])).outputs["gradient"]
    assert gradient.shape == (2, 1)
    assert np.isnan(gradient.numpy()).ravel().tolist() == [False, True]


def test_openapi_is_what_generators_can_read(http: httpx.Client) -> None:
    schema = http.get("/openapi.json").json()
    assert schema["servers"] == [{"url": "/"}]
    assert schema["info"]["license"]["identifier"] == "MIT"

    def check(value: Any, place: str) -> None:
        if isinstance(value, dict):
            assert value.get("type") != "array" or {"items", "prefixItems"} & value.keys(), place
            for key, child in value.items():
                check(child, f"{place}/{key}")
        elif isinstance(value, list):
            for number, child in enumerate(value):
                check(child, f"{place}/{number}")

    check(schema, "")
    for path, model in (("losses", LossList), ("metrics", MetricCatalogue)):
        documented = schema["paths"][f"/v1/{path}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert documented == {"$ref": f"#/components/schemas/{model.__name__}"}
        found = http.get(f"/v1/{path}").json()
        assert model.model_validate(found).model_dump(exclude_unset=True) == found, "nothing is left out"
        name = found[path][0]["name"]
        documented = schema["paths"][f"/v1/{path}/{{name}}"]["get"]["responses"]["200"]["content"]
        assert "$ref" in documented["application/json"]["schema"]
        one = {"losses": LossPage, "metrics": MetricList}[path]
        found = http.get(f"/v1/{path}/{name}").json()
        assert one.model_validate(found).model_dump() == found
