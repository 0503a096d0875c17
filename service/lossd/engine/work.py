"""What a worker does with a batch: evaluate it, or answer the requests of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lossd.evaluation.evaluate import evaluate
from lossd.evaluation.in_memory import evaluate_in_memory
from lossd.job import Recipe

if TYPE_CHECKING:
    import torch

    from lossd.compiled.passes import Passes
    from lossd.evaluation.batch import TensorBatch
    from lossd.evaluation.in_memory import Text
    from lossd_client.errors import Problem

__all__ = ["answer_in_memory", "answers_of"]


def answer_in_memory(
    manifest: Mapping[str, Any], memory: Any, device: torch.device, passes: Passes | None
) -> tuple[list[Text], int]:
    """Return the text of each request's answer in order, and the time in ns.

    The modules of runs are loaded with the first batch of a run.

    Args:
        manifest: ``recipe``, the rows and the numbers of each request, and the offset of each column in bytes.
        memory: A writable buffer that holds the columns.
        device: The device that computes.
        passes: The compiled passes to use on a CPU, if any; runs use none.

    Raises:
        RuntimeError: The device is broken.
    """
    if Recipe.parse(manifest["recipe"]).run is None:
        return evaluate_in_memory(manifest, memory, device, passes)
    from lossd.runs import in_memory

    return in_memory.answer_in_memory(manifest, memory, device)


def answers_of(batch: TensorBatch, arrays: Mapping[str, Any]) -> list[dict[str, Any] | Problem] | list[bytes | Problem]:
    """Return the answer of each request of a batch whose inputs are on a device.

    Args:
        batch: The batch.
        arrays: Its inputs in main memory.

    Raises:
        RuntimeError: The device is broken.
    """
    if batch.recipe.run is None:
        return evaluate(batch)
    from lossd.runs.in_memory import answer_of

    return answer_of(batch, arrays)
