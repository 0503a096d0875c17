"""Evaluate in this process: the same answers as the service, without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from lossd.arrangement import arrange_one
from lossd.evaluation.device_errors import usable
from lossd.evaluation.in_memory import evaluate_in_memory
from lossd.request.planning import make_plan
from lossd_client.calls import HttpResponse
from lossd_client.errors import Problem
from lossd_client.messages import Evaluation, compose, read_evaluation
from lossd_client.wire import Tensor, json, safetensors

__all__ = ["evaluate"]


def evaluate(
    loss: str | Mapping[str, Any] | None = None,
    prediction: Any = None,
    target: Any = None,
    /,
    *,
    task: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | str | None = None,
    gradient: Mapping[str, Any] | None = None,
    hessian: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
    device: str = "cpu",
    **keywords: Any,
) -> Evaluation:
    """Evaluate a loss, its gradient and metrics in this process, without a service.

    The arguments and the result are those of ``LossClient.evaluate``.

    Args:
        loss: The loss's name, or an object of its name and parameters.
        prediction: A NumPy array, a torch tensor or a nested list. Lists of floats become float32, lists of integers
            int64.
        target: As ``prediction``.
        task: The task whose metrics are computed without a loss.
        inputs: Further inputs by name.
        outputs: What to compute: ``loss``, ``gradient``, ``gradient.<input>``, ``metrics``, ``hessian``,
            ``hessian.<input>``, ``hvp``, ``hvp.<input>``. The default is loss, gradient and metrics.
        gradient: Options of the gradient: clip_norm, clip_scope, clip_value, dtype, layout.
        hessian: Options of the Hessian: form, floor.
        metrics: Names of metrics, or an object of options.
        device: The torch device: cpu, cuda, cuda:0.
        **keywords: Inputs (arrays and tensors, and lists under an input's name) and the loss's parameters.

    Returns:
        The evaluation. Each gradient has the shape, the dtype, the library (NumPy or torch) and the device of its
        input. For float16, bfloat16 and integers its dtype is float32. The gradient's ``dtype`` and ``layout`` change
        dtype and shape.

    Raises:
        Problem: The request is invalid. The service answers with the same error.
        ValueError: The device cannot be used.
    """
    composed = compose(
        loss,
        prediction,
        target,
        task=task,
        inputs=inputs,
        outputs=outputs,
        gradient=gradient,
        hessian=hessian,
        metrics=metrics,
        keywords=keywords,
    )
    tensors, metadata = safetensors.decode(b"".join(composed.body.pieces))
    plan = make_plan(json.loads(metadata["request"].encode()))
    job = plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    recipe, (arrangement, memory) = (
        job.recipe,
        arrange_one(job, {name: tensor.data for name, tensor in tensors.items()}),
    )
    manifest = {"recipe": recipe.text, "rows": [job.rows], "numbers": [job.numbers], "offsets": arrangement.offsets}
    [(failed, text)], _ = evaluate_in_memory(manifest, memory, usable(device))
    if failed:
        raise Problem.from_json(orjson.loads(text))
    view = memoryview(memory)
    outputs_by_name = {}
    for column, offset in zip(recipe.answers, arrangement.offsets[len(recipe.inputs) :], strict=True):
        size = column.unit_bytes * column.units(job.rows)
        outputs_by_name[column.name] = Tensor(column.dtype, column.shape(job.rows), view[offset : offset + size])
    body = bytearray().join(safetensors.encode(outputs_by_name, {"result": text.decode()}))
    return read_evaluation(HttpResponse(200, {"content-type": safetensors.MEDIA_TYPE}, body), composed.origins)
