"""Keeps the requests of a batch apart where one fails: the others are answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.device_errors import is_broken_device, is_out_of_memory, release_memory, too_large
from lossd_client.errors import InternalError, Problem

__all__ = ["isolated"]

log = logging.getLogger("lossd.evaluation")

T = TypeVar("T")


def isolated(batch: TensorBatch, answer: Callable[[TensorBatch], Sequence[T | Problem] | None]) -> list[T | Problem]:
    """Return the answer of each request in order, or the request's problem.

    If a failure names no request, each request is answered alone, so that one request cannot fail another. If memory
    runs out, the halves of the batch are answered.

    Args:
        batch: The batch.
        answer: Returns the answers of a batch; None for several requests that it leaves to be answered alone.

    Raises:
        RuntimeError: The device is broken; another device may evaluate the batch.
    """
    if batch.recipe.alone and len(batch.rows) > 1:
        return [found for i in range(len(batch.rows)) for found in isolated(batch.part(i, i + 1), answer)]
    exhausted = False
    try:
        answers = answer(batch)
        if answers is not None:
            return list(answers)
    except Problem as problem:
        if len(batch.rows) == 1:
            return [problem]
    except Exception as error:
        if is_broken_device(error):
            raise
        exhausted = is_out_of_memory(error)
        if len(batch.rows) == 1 and exhausted:
            nbytes = sum(tensor.nbytes for tensors in (batch.inputs, batch.answers) for tensor in tensors.values())
            return [too_large(error, batch.device, batch.recipe.model, nbytes)]
        if len(batch.rows) == 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in batch.inputs.items()}
            log.exception("%s failed on inputs of shapes %s", batch.recipe.model, shapes)
            return [InternalError(f"{batch.recipe.model} failed on this request; the worker's log says why")]
    if exhausted:  # only here, because the failed attempt's tensors are freed by now
        release_memory(batch.device)
        half = len(batch.rows) // 2
        return isolated(batch.part(0, half), answer) + isolated(batch.part(half, len(batch.rows)), answer)
    return [found for i in range(len(batch.rows)) for found in isolated(batch.part(i, i + 1), answer)]
