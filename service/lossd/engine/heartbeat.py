"""A worker's heartbeat: a page of shared memory that shows what it is doing, and whether it is doing anything.

How long a batch takes says nothing: a large one may honestly take minutes. A thread that beats says nothing either: it
goes on while the rest hangs. So the front asks, by a signal, and Python answers signals in the main thread alone,
between two of its instructions. A worker inside an operation answers when that operation ends; one that hangs does not.

The page also says what need not be finished: a front writes there which of its batches nobody waits for, and the same
signal ends its evaluation.
"""

from __future__ import annotations

import mmap
import os
import signal
from types import FrameType

__all__ = ["PROBE", "Heartbeat", "Unwanted"]

PROBE = signal.SIGUSR1
"""The signal by which a front asks a worker for a beat, and to look at what it need not finish."""

_STEPS, _BEATS, _FRONT, _BATCH, _RESERVED, _FREE, _TOTAL, _READY, _FAILED, _PASSES, _UNWANTED, _ENGAGED = range(12)
_BATCH_BITS = 48


class Unwanted(BaseException):
    """Nobody waits for what is being evaluated. No ``Exception``: nothing on the way is to take it for a failure."""


class Heartbeat:
    """The page.

    Args:
        fd: The anonymous file it is in; by default a new one.

    Attributes:
        may_stop: Whether the worker is where an evaluation may end early.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("lossd-pulse", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, mmap.PAGESIZE)
        self._words = memoryview(mmap.mmap(self.fd, mmap.PAGESIZE)).cast("Q")
        self.may_stop = False

    def close(self) -> None:
        """Give the page back."""
        os.close(self.fd)
        self._words.release()

    # The worker's side

    def begin(self, front: int, batch: int) -> None:
        """That batch of that front is being evaluated."""
        words = self._words
        words[_FRONT] = front
        words[_BATCH] = batch
        words[_STEPS] += 1

    def end(self) -> None:
        """It has been evaluated."""
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
        """Say whether a long batch is being evaluated, or is next: what is sent now would wait for it."""
        self._words[_ENGAGED] = engaged

    def note_memory(self, reserved: int, free: int, total: int) -> None:
        """What its device's memory looks like, in bytes: held by this worker, held by nobody, and all there is."""
        words = self._words
        words[_RESERVED], words[_FREE], words[_TOTAL] = reserved, free, total

    def note_compiled(self, ready: int, failed: int, total: int) -> None:
        """How many compiled passes can be used, how many cannot be had, and how many there are."""
        words = self._words
        words[_READY], words[_FAILED], words[_PASSES] = ready, failed, total

    # The front's side

    @property
    def compiled(self) -> tuple[int, int, int]:
        """What was noted last; all 0 before the first time, as on a GPU."""
        words = self._words
        return words[_READY], words[_FAILED], words[_PASSES]

    def mark_unwanted(self, front: int, batch: int) -> None:
        """Nobody waits for that batch of that front; the worker looks at it when it is asked."""
        self._words[_UNWANTED] = _named(front, batch)

    @property
    def memory(self) -> tuple[int, int, int] | None:
        """What was noted last; None before the first time, as on a CPU."""
        words = self._words
        return (words[_RESERVED], words[_FREE], words[_TOTAL]) if words[_TOTAL] else None

    @property
    def engaged(self) -> bool:
        """Whether what is sent now would wait for a long batch."""
        return bool(self._words[_ENGAGED])

    @property
    def steps(self) -> int:
        """Counts batches begun and batches ended; odd while one is being evaluated."""
        return self._words[_STEPS]

    @property
    def probes_answered(self) -> int:
        """Counts answers to :data:`PROBE`."""
        return self._words[_BEATS]

    @property
    def evaluating(self) -> tuple[int, int] | None:
        """The front and the batch that are being served, or were when the worker died."""
        return (self._words[_FRONT], self._words[_BATCH]) if self.steps % 2 else None


def _named(front: int, batch: int) -> int:
    """Both in one word, which is written and read at once."""
    return front << _BATCH_BITS | batch


def _is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame runs within an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
