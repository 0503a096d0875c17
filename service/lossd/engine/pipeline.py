"""Batches on their way through a GPU: the next is copied in while this one is computed and copied out.

One stream copies in; everything else happens on the device's usual stream, in order. Slabs are page-locked, without
which a copy would not run beside anything.
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lossd.engine.work import answers_of
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import Columns, columns_in
from lossd.job import Recipe
from lossd_client.errors import Problem

__all__ = ["Pipeline", "Staged"]

log = logging.getLogger("lossd.engine")


@dataclass(slots=True, eq=False)
class Staged:
    """A batch whose inputs are on their way to the device.

    Attributes:
        manifest: Which batch.
        memory: Its slab's.
        batch: With its inputs on the device, or still in the slab where the device had no memory for them.
        inputs: Its inputs in the slab.
        answers: Where its answers belong.
        began: When its copy began, on the device's clock.
        arrived: When it was complete.
    """

    manifest: Mapping[str, Any]
    memory: mmap.mmap
    batch: TensorBatch
    inputs: Columns
    answers: Mapping[str, Tensor]
    began: Any
    arrived: Any


class Pipeline:
    """Copies ahead of a device.

    Args:
        device: A GPU.
        cuda: What has its streams and events: ``torch.cuda``, or a stand-in.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self.device = device
        self._cuda = cuda
        self._inward = cuda.Stream(device)

    def pin(self, memory: mmap.mmap) -> None:
        """Page-lock a slab."""
        if error := int(self._cuda.cudart().cudaHostRegister(_address(memory), len(memory), 0)):
            log.warning("a slab of %d bytes is not page-locked (CUDA error %d): copies are slower", len(memory), error)

    def unpin(self, memory: mmap.mmap) -> None:
        """Before a slab is unmapped: nothing is copied from it any more."""
        self._inward.synchronize()
        self._cuda.cudart().cudaHostUnregister(_address(memory))

    def stage(self, manifest: Mapping[str, Any], memory: mmap.mmap) -> Staged:
        """Begin to copy a batch in; returns before that is done."""
        recipe, rows = Recipe.parse(manifest["recipe"]), manifest["rows"]
        inputs, answers = columns_in(memory, recipe, manifest["offsets"], sum(rows), len(rows))
        began, arrived = self._event(), self._event()
        usual = self._cuda.current_stream(self.device)
        ahead: Mapping[str, Tensor] = inputs
        with self._cuda.stream(self._inward):
            began.record()
            try:
                ahead = {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
            except torch.OutOfMemoryError:
                log.warning("no memory on %s to copy a batch ahead", self.device)
            arrived.record()
        for tensor in ahead.values():
            if tensor.is_cuda:  # its memory is not to be given to another copy before it was used
                tensor.record_stream(usual)
        batch = TensorBatch(recipe, rows, manifest["numbers"], ahead, answers, self.device)
        return Staged(manifest, memory, batch, inputs, answers, began, arrived)

    def evaluate(self, staged: Staged) -> tuple[list[dict[str, Any] | Problem] | list[bytes | Problem], int, int]:
        """The outcomes of a batch whose answers are in its slab, and how long copies and computing took, in ns."""
        usual = self._cuda.current_stream(self.device)
        usual.wait_event(staged.arrived)
        begun, done, copied = self._event(), self._event(), self._event()
        begun.record(usual)
        answers = staged.answers
        try:
            answers = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
                for name, tensor in staged.answers.items()
            }
        except torch.OutOfMemoryError:
            log.warning("no memory on %s for a batch's answers beside it", self.device)
        batch = staged.batch
        outcomes = answers_of(batch._replace(answers=answers), staged.inputs.arrays)
        done.record(usual)
        if answers is not staged.answers:
            for name, tensor in staged.answers.items():
                tensor.copy_(answers[name], non_blocking=True)
        copied.record(usual)
        copied.synchronize()
        copy_ms = staged.began.elapsed_time(staged.arrived) + done.elapsed_time(copied)
        return outcomes, round(copy_ms * 1e6), round(begun.elapsed_time(done) * 1e6)

    def restage(self, staged: Staged) -> None:
        """Free what a batch takes on the device; its inputs are copied again when its turn comes."""
        recipe, rows = staged.batch.recipe, staged.batch.rows
        inputs, answers = columns_in(staged.memory, recipe, staged.manifest["offsets"], sum(rows), len(rows))
        staged.batch = TensorBatch(recipe, rows, staged.manifest["numbers"], inputs, answers, self.device)

    def _event(self) -> Any:
        return self._cuda.Event(enable_timing=True)


def _address(memory: mmap.mmap) -> int:
    return np.frombuffer(memory, np.uint8).ctypes.data
