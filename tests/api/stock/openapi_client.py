"""What openapi-python-client generates from the schema evaluates a loss; run beside the package ``generated``."""

from __future__ import annotations

import math
import sys

from generated import Client
from generated.api.catalogue import losses_v1_losses_get, one_metric_v1_metrics_name_get
from generated.api.evaluation import evaluate
from generated.models import (
    Answer,
    CrossEntropy,
    EvaluateRequest,
    EvaluateRequestInputs,
    LossList,
    MetricList,
    MetricOptions,
    Problem,
)


def request(loss: CrossEntropy, **inputs: object) -> EvaluateRequest:
    tensors = EvaluateRequestInputs()
    tensors.additional_properties = dict(inputs)  # type: ignore[arg-type]
    options = MetricOptions(names=["accuracy"])
    return EvaluateRequest(inputs=tensors, loss=loss, metrics=options, gradient=None, outputs=None, task=None)


def main(url: str) -> None:
    client = Client(base_url=url, timeout=60)
    loss = CrossEntropy(name="cross_entropy", label_smoothing=0.0)
    answer = evaluate.sync(client=client, body=request(loss, prediction=[[0.0, 0.0]], target=[1], sample_weight=None))
    assert isinstance(answer, Answer), answer
    assert math.isclose(answer.loss, math.log(2), rel_tol=1e-6)
    assert answer.metrics["accuracy"] in (0, 1)
    assert answer.gradient["prediction"] == [[0.5, -0.5]]

    answer = evaluate.sync(client=client, body=request(loss, prediction=[["NaN", 0.0]], target=[1]))
    assert answer.loss == "NaN"
    assert answer.reduction.numerator == "NaN"
    assert answer.diagnostics.gradient_norm["prediction"] == "NaN"

    problem = evaluate.sync(client=client, body=request(loss, prediction=[[0.0, 0.0]], target=[2]))
    assert isinstance(problem, Problem)
    assert problem.status == 422

    losses = losses_v1_losses_get.sync(client=client)
    assert isinstance(losses, LossList)
    (focal,) = (entry for entry in losses.losses if entry.name == "focal")
    assert [entry.name for entry in focal.inputs if not entry.optional] == ["prediction", "target"]
    assert focal.parameters["gamma"]["minimum"] == 0
    accuracy = one_metric_v1_metrics_name_get.sync("accuracy", client=client)
    assert isinstance(accuracy, MetricList)
    assert {"binary", "multiclass"} <= {entry.task for entry in accuracy.metrics}


main(sys.argv[1])
