"""A worker's heartbeat: a page of shared memory that shows what the worker is doing, and whether it is alive.

The duration of a batch does not show whether a worker hangs: a large one may take minutes. A thread that beats does not
show it either, because it goes on while the main thread hangs. So the front sends a probe, a signal. Python handles
signals in the main thread only, between two instructions: a worker inside an operation answers when the operation ends,
and one that hangs does not answer.

A front also writes on the page which batch no client waits for: one of its own, or one of a front that has ended. The
same signal then ends the evaluation.
"""

from __future__ import annotations

import mmap
import os
import signal
from types import FrameType

__all__ = ["PROBE", "Heartbeat", "Unwanted"]

PROBE = signal.SIGUSR1
"""The signal of a probe: the worker answers, and checks whether its batch is unwanted."""

(
    _STEPS, _BEATS, _FRONT, _PID, _BATCH, _RESERVED, _FREE, _TOTAL, _READY, _FAILED, _PASSES, _UNWANTED, _ENGAGED,
) = range(13)  # fmt: skip
_BATCH_BITS = 48


class Unwanted(BaseException):
    """Ends an unwanted evaluation. It is no ``Exception``, so that no handler takes it for a failure."""


class Heartbeat:
    """The page of a worker's heartbeat.

    Args:
        fd: The anonymous file of the page; by default a new one.

    Attributes:
        may_stop: Whether the worker is in an evaluation that may be ended.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("lossd-heartbeat", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._words = memoryview(mmap.mmap(self.fd, mmap.PAGESIZE)).cast("Q")
        self.may_stop = False

    def close(self) -> None:
        """Close the page."""
        os.close(self.fd)
        self._words.release()

    # The worker's side

    def begin(self, front: int, batch: int, pid: int = 0) -> None:
        """Note that the evaluation of a front's batch begins.

        Args:
            front: The front's number.
            batch: The batch's number.
            pid: The front's process id; 0 if no other front can take its place.
        """
        words = self._words
        words[_FRONT], words[_PID] = front, pid
        words[_BATCH] = batch
        words[_STEPS] += 1

    def end(self) -> None:
        """Note that the evaluation has ended."""
        self._words[_STEPS] += 1

    def answer_probe(self, _signal: int = PROBE, frame: FrameType | None = None) -> None:
        """Answer a probe of a front; the handler of the signal.

        Args:
            frame: The interrupted frame.

        Raises:
            Unwanted: The evaluation need not be finished, and may stop where it is. Never raised within an import.
        """
        words = self._words
        words[_BEATS] += 1
        if self.may_stop and self.evaluating is not None and words[_UNWANTED] == _named(*self.evaluating):
            # torch imports sympy with the first gradient. An import that is cut off leaves half a module behind, and
            # every later gradient then fails. The next probe finds the import done.
            if _is_importing(frame):
                return
            self.may_stop = False
            raise Unwanted

    def engage(self, engaged: bool) -> None:
        """Note whether a long batch is being evaluated, or is next."""
        self._words[_ENGAGED] = engaged

    def note_memory(self, reserved: int, free: int, total: int) -> None:
        """Note the device's memory, in bytes: held by this worker, free, and in all."""
        words = self._words
        words[_RESERVED], words[_FREE], words[_TOTAL] = reserved, free, total

    def note_compiled(self, ready: int, failed: int, total: int) -> None:
        """Note how many compiled passes are ready, how many failed, and how many there are."""
        words = self._words
        words[_READY], words[_FAILED], words[_PASSES] = ready, failed, total

    # The front's side

    @property
    def compiled(self) -> tuple[int, int, int]:
        """The last note of the compiled passes; all 0 before the first, and on a GPU."""
        words = self._words
        return words[_READY], words[_FAILED], words[_PASSES]

    def mark_unwanted(self, front: int, batch: int) -> None:
        """Mark a front's batch as unwanted; the next probe ends its evaluation."""
        self._words[_UNWANTED] = _named(front, batch)

    @property
    def abandoned(self) -> bool:
        """Whether the batch that is being evaluated is of a front that has ended."""
        pid = self._words[_PID]
        return bool(pid) and not os.path.exists(f"/proc/{pid}")

    @property
    def memory(self) -> tuple[int, int, int] | None:
        """The last note of the device's memory; None before the first, and on a CPU."""
        words = self._words
        return (words[_RESERVED], words[_FREE], words[_TOTAL]) if words[_TOTAL] else None

    @property
    def engaged(self) -> bool:
        """Whether a long batch is being evaluated, or is next."""
        return bool(self._words[_ENGAGED])

    @property
    def steps(self) -> int:
        """The number of evaluations begun and ended; odd during an evaluation."""
        return self._words[_STEPS]

    @property
    def probes_answered(self) -> int:
        """The number of answers to :data:`PROBE`."""
        return self._words[_BEATS]

    @property
    def evaluating(self) -> tuple[int, int] | None:
        """The front and the batch that are being evaluated, or were when the worker died; None if there is none."""
        return (self._words[_FRONT], self._words[_BATCH]) if self.steps % 2 else None


def _named(front: int, batch: int) -> int:
    """Return front and batch in one word, which is written and read atomically."""
    return front << _BATCH_BITS | batch


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame runs within an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
