"""The catalogue of losses and metrics, OpenAPI, the documentation and health checks."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lossd.losses import REGISTRY
from lossd.losses.families import by_family
from lossd.metrics import METRICS
from lossd_client.errors import PROBLEMS, Conflict, StorageFull
from serving import openapi


def test_every_loss_is_listed_with_what_it_takes(http):
    listed = http.get("/v1/losses").json()["losses"]
    assert [entry["name"] for entry in listed] == [loss.name for losses in by_family().values() for loss in losses]
    assert len(listed) == len(REGISTRY)
    for entry in listed:
        assert entry["summary"]
        assert entry["inputs"]
        assert entry["references"], entry["name"]
        assert "reduction" in entry["parameters"]
        document = http.get(f"/v1/losses/{entry['name']}").json()
        assert set(document.pop("guide")) == {"idea", "use", "avoid", "mistake", "symbols"}
        assert document == entry


def test_a_loss_is_described_by_its_signature(http):
    huber = http.get("/v1/losses/huber").json()
    assert huber["task"] == "regression"
    assert huber["hessian"]
    assert not http.get("/v1/losses/dice").json()["hessian"]
    assert "delta" in huber["formula"]
    assert huber["parameters"]["delta"]["default"] == 1.0
    assert huber["parameters"]["delta"]["exclusiveMinimum"] == 0
    prediction = huber["inputs"][0]
    assert (prediction["name"], prediction["differentiable"]) == ("prediction", True)
    assert prediction["types"][0]["shape"] == "(N, *)"


@pytest.mark.parametrize(
    ("name", "prediction", "target", "further", "alone"),
    [
        (
            "ce_dice",
            "(N, C, *)",
            {"domain": "class", "dtypes": ["integer"], "shape": "(N, *)"},
            [{"domain": "probability", "dtypes": ["float", "integer"], "shape": "(N, C, *)"}],
            "cross_entropy",
        ),
        (
            "bce_dice",
            "(N, *)",
            {"domain": "mask", "dtypes": ["float", "integer"], "shape": "(N, *)"},
            [],
            "bce_with_logits",
        ),
    ],
)
def test_a_loss_of_fixed_terms_takes_what_they_take(http, triton, name, prediction, target, further, alone):
    described = http.get(f"/v1/losses/{name}").json()
    entries = {entry["name"]: entry for entry in described["inputs"]}
    masks = ["mask", "element_weight", "lengths"]
    assert list(entries) == ["prediction", "target", "sample_weight", *masks, "cotangent"]
    assert entries["prediction"]["types"] == [{"domain": "logits", "dtypes": ["float"], "shape": prediction}]
    assert entries["prediction"]["differentiable"] is True
    assert entries["target"]["types"] == [target, *further]
    assert [entry["optional"] for entry in entries.values()] == [False, False, True, True, True, True, True]
    assert entries["mask"]["types"] == [{"domain": "kept", "dtypes": ["integer"], "shape": target["shape"]}]
    assert entries["sample_weight"]["summary"].endswith(f"For {alone} alone.")  # dice counts every sample
    assert described["inputs_of_terms"] is False
    tensors = {tensor["name"]: tensor for tensor in triton.get_model_metadata(name)["inputs"]}
    assert list(tensors) == list(entries)
    assert tensors["prediction"]["shape"] == [-1] * (prediction.count(",") + 1)
    assert tensors["target"]["datatype"] == ("INT64" if name == "ce_dice" else "FP32")


def test_losses_of_any_terms_say_that_theirs_are_their_inputs(http):
    of_terms = {loss["name"] for loss in http.get("/v1/losses").json()["losses"] if loss["inputs_of_terms"]}
    assert of_terms == {"weighted_sum", "uncertainty", "curriculum"}


def test_an_unknown_name_is_answered_with_the_nearest(http):
    for path, near in (("/v1/losses/l1", "mae"), ("/v1/losses/crossentropy", "cross_entropy"), ("/v1/metrics/f2", "f")):
        response = http.get(path)
        assert response.status_code == 404
        assert near in response.json()["detail"]


def test_every_metric_is_listed(http):
    listed = {(m["task"], m["name"]) for m in http.get("/v1/metrics").json()["metrics"]}
    assert listed == {(task, name) for task, of_task in METRICS.items() for name in of_task}
    options = http.get("/v1/metrics").json()["options"]
    assert "$ref" not in str(options), "each is whole"
    assert options["weights"]["enum"] == ["none", "linear", "quadratic"]
    assert {o for m in http.get("/v1/metrics").json()["metrics"] for o in m["options"]} <= options.keys()
    assert {m["task"] for m in http.get("/v1/metrics/f1").json()["metrics"]} >= {"binary", "multiclass"}


def test_every_task_is_listed_with_what_its_metrics_take(http):
    tasks = {task["name"]: task for task in http.get("/v1/metrics").json()["tasks"]}
    assert set(tasks) == set(METRICS)
    assert [entry["name"] for entry in tasks["boxes"]["inputs"]] == ["prediction", "target", "sample_weight"]
    assert {name for name, task in tasks.items() if task["predicted_classes"]} == {"multiclass", "segmentation"}
    of_scores, of_classes = tasks["multiclass"], tasks["multiclass"]["predicted_classes"]
    assert of_scores["inputs"][0]["types"] == [{"domain": "logits", "dtypes": ["float"], "shape": "(N, C, *)"}]
    assert of_classes["inputs"][0]["types"] == [{"domain": "predicted", "dtypes": ["integer"], "shape": "(N, *)"}]
    request = {"task": "multiclass", "inputs": {"prediction": [0, 1], "target": [1, 1]}}
    for name in METRICS["multiclass"]:
        metrics = {"classes": 2, "names": [name], "k": 1}
        answer = http.post("/v1/evaluate", json={**request, "metrics": metrics})
        assert (answer.status_code == 422) == (name in of_classes["refused"]), name


def test_openapi_types_every_losss_parameters(http):
    document = http.get("/openapi.json").json()
    union = document["components"]["schemas"]["Loss"]
    assert set(union["discriminator"]["mapping"]) == set(REGISTRY)
    schemas = document["components"]["schemas"]
    for name, reference in union["discriminator"]["mapping"].items():
        schema = schemas[reference.rpartition("/")[2]]
        common = {"name", "reduction", *(("nan_targets",) if REGISTRY[name].may_lack_targets else ())}
        assert {p.name for p in REGISTRY[name].parameters} | common == set(schema["properties"])
        assert schema["additionalProperties"] is False
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', http.get("/openapi.json").text))
    assert references <= set(schemas)
    assert "HTTPValidationError" not in schemas
    evaluate = document["paths"]["/v1/evaluate"]["post"]
    of_runs = (Conflict, StorageFull)
    statuses = {str(kind.status) for kind in PROBLEMS.values() if not issubclass(kind, of_runs)}
    assert set(evaluate["responses"]) == {"200", *statuses}
    named = {name for requirement in document["security"] for name in requirement}
    assert {} in document["security"], "a key is needed only where the service has some"
    assert named == set(document["components"]["securitySchemes"])


def test_the_openapi_document_says_in_words_what_each_request_does() -> None:
    verbs = {"Check", "Compare", "Count", "Create", "Delete", "Draw", "Evaluate", "Get", "List", "Register", "Seal",
             "Train", "Unregister"}  # fmt: skip
    operations = [o for methods in openapi()["paths"].values() for o in methods.values()]
    summaries = [operation["summary"] for operation in operations]
    assert [summary for summary in summaries if summary.split()[0] not in verbs or summary.endswith(".")] == []
    described = [answer["description"] for operation in operations for answer in operation["responses"].values()]
    assert "Successful Response" not in described


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_interactive_docs_need_nothing_from_elsewhere(http, page):
    text = http.get(page).text
    assets = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert assets
    for asset in assets:
        found = http.base_url.join(page).join(asset)
        assert (found.host, found.port) == (http.base_url.host, http.base_url.port), asset
        assert http.get(found).status_code == 200
    assert "https://" not in text.replace("https://www.w3.org", "")


def test_every_problem_type_is_a_page(http):
    for slug, kind in PROBLEMS.items():
        page = http.get(f"/problems/{slug}")
        assert page.status_code == 200
        assert kind.title in page.text
    assert http.get("/problems/nope").status_code == 404


def test_health_and_counters(http):
    assert http.get("/health/live").json()["status"] == "live"
    assert http.get("/health/ready").status_code == 200
    http.post("/v1/evaluate", json={"loss": {"name": "nope"}, "inputs": {}})
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    for name in (
        "lossd_requests",
        "lossd_request_seconds",
        "lossd_batch_requests",
        "lossd_batch_bytes",
        "lossd_queue_bytes",
        "lossd_queue_requests",
        "lossd_worker_restarts",
        "lossd_recorder_restarts",
    ):
        assert name in families, name
    outcomes = {s.labels["outcome"] for s in families["lossd_requests"].samples}
    assert "unknown-loss" in outcomes


def test_errors_of_the_router_have_the_same_form(http):
    for method, path, status in (("GET", "/nope", 404), ("DELETE", "/v1/losses", 405)):
        response = http.request(method, path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
