"""What a worker does with a batch: evaluate it, or answer the requests of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from lossd.evaluation.evaluate import evaluate
from lossd.evaluation.in_memory import evaluate_in_memory

if TYPE_CHECKING:
    import torch

    from lossd.compiled.passes import Passes
    from lossd.evaluation.batch import TensorBatch
    from lossd.evaluation.columns import Columns
    from lossd.evaluation.in_memory import Text
    from lossd_client.errors import Problem

__all__ = ["answer_in_memory", "answers_of"]


def answer_in_memory(
    manifest: Mapping[str, Any], memory: Any, device: torch.device, passes: Passes | None
) -> tuple[list[Text], int]:
    """Return the text of each request's answer in order, and the time in ns.

    The text of a run's batch is a :class:`~lossd.runs.report.BatchReport`; every other text is JSON. For arguments and
    errors see :func:`~lossd.evaluation.in_memory.evaluate_in_memory`.
    """
    return evaluate_in_memory(manifest, memory, device, passes, _answers_in_memory)


def answers_of(
    batch: TensorBatch, arrays: Mapping[str, Any], passes: Passes | None = None
) -> list[dict[str, Any] | Problem] | list[bytes | Problem]:
    """Return the answer of each request of a batch.

    The modules of runs are loaded with the first batch of a run.

    Args:
        batch: The batch, with its inputs on the device.
        arrays: Its inputs in main memory.
        passes: The compiled passes to use on a CPU, if any; runs use only the kernels that count and hash.

    Raises:
        RuntimeError: The device is broken.
    """
    if batch.recipe.run is None:
        return evaluate(batch, passes)
    from lossd.runs.in_memory import answer_of

    kernels = passes.counting if passes is not None and batch.device.type == "cpu" else {}
    return answer_of(batch, arrays, kernels)


def _answers_in_memory(
    batch: TensorBatch, passes: Passes | None
) -> list[dict[str, Any] | Problem] | list[bytes | Problem]:
    return answers_of(batch, cast("Columns", batch.inputs).arrays, passes)
