"""The job behind Triton Inference Server, by pytriton: serve_pytriton.py PORT.

One model a loss, and one for images. Triton puts equal shapes into one batch, along an axis in front of each request's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import job
import numpy as np
import torch
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig
from pytriton.model_config import Tensor as Spec
from pytriton.triton import Triton, TritonConfig

Array = np.ndarray[Any, Any]


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def rows_of(loss: str) -> Callable[..., Any]:
    """Requests of (N, C), stacked by Triton."""
    default = job.PARAMETERS.get(loss, ("", 0.0))[1]

    @batch
    def evaluate(prediction: Array, target: Array, parameter: Array | None = None) -> dict[str, Array]:
        requests, rows = prediction.shape[:2]
        parameters = [default] * requests if parameter is None else parameter[:, 0].tolist()
        prediction, target = (array.reshape(-1, *array.shape[2:]) for array in (prediction, target))
        return answered(job.evaluate_rows(loss, parameters, [rows] * requests, tensor(prediction), tensor(target)))

    return evaluate


@batch
def image(prediction: Array, target: Array) -> dict[str, Array]:
    """The focal loss of one image; there Triton's axis is the image's own."""
    (answer,) = job.evaluate_rows("focal", [2.0], [1], tensor(prediction), tensor(target))
    return answered([answer._replace(gradient=answer.gradient[0])])


def answered(answers: list[job.Answer]) -> dict[str, Array]:
    outputs = {
        "loss": np.array([[answer.loss] for answer in answers], np.float32),
        "gradient": np.stack([answer.gradient.numpy() for answer in answers]),
        "metrics": np.array([list(answer.metrics.values()) for answer in answers], np.float32),
    }
    tables = [answer.confusion.numpy() for answer in answers if answer.confusion is not None]
    return outputs | ({"confusion_matrix": np.stack(tables)} if tables else {})


def bind(triton: Triton, name: str, loss: str, infer: Callable[..., Any], axes: int, largest_batch: int) -> None:
    classes = job.TASKS[loss] == "multiclass"
    inputs = [
        Spec(name="prediction", dtype=np.float32, shape=(-1,) * axes),
        Spec(name="target", dtype=np.int64 if classes else np.float32, shape=(-1,) * (axes - classes)),
    ]
    if loss in job.PARAMETERS and axes == 2:
        inputs.append(Spec(name="parameter", dtype=np.float32, shape=(1,), optional=True))
    outputs = [
        Spec(name="loss", dtype=np.float32, shape=(1,)),
        Spec(name="gradient", dtype=np.float32, shape=(-1,) * axes),
        Spec(name="metrics", dtype=np.float32, shape=(-1,)),
    ]
    if job.TASKS[loss] != "regression":
        outputs.append(Spec(name="confusion_matrix", dtype=np.int64, shape=(-1, -1)))
    batcher = DynamicBatcher(max_queue_delay_microseconds=0)
    config = ModelConfig(max_batch_size=largest_batch, batcher=batcher)
    triton.bind(model_name=name, infer_func=infer, inputs=inputs, outputs=outputs, config=config)


if __name__ == "__main__":
    config = TritonConfig(http_address="127.0.0.1", http_port=int(sys.argv[1]), allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        bind(triton, "focal_of_an_image", "focal", image, axes=3, largest_batch=1)
        # Models load in this order: whoever gets an answer from the last finds the others ready.
        for loss in sorted(job.TASKS, key="focal".__eq__):
            bind(triton, loss, loss, rows_of(loss), axes=2, largest_batch=64)
        triton.serve()
