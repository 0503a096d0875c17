"""Decides whether a worker is alive, from its heartbeat and the time. No I/O and no clock."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Liveness", "Observation"]

LONGEST_INTERVAL_S = 1.0
INTERVALS = 4

UNWANTED_S = 2.0
"""How long a worker may go on with an unwanted batch while another client waits."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A front's observation of a worker.

    Attributes:
        steps: See :class:`lossd.engine.heartbeat.Heartbeat`.
        probes_answered: See :class:`lossd.engine.heartbeat.Heartbeat`.
        busy: Whether it has batches of this front, or one that is unwanted.
        awaited: Whether a client waits for the batch that it evaluates; True for a batch of another front that runs.
        others_wait: Whether a client waits, or may wait, for a later batch.
    """

    steps: int
    probes_answered: int
    busy: bool
    awaited: bool
    others_wait: bool = False


class Liveness:
    """Measures how long a worker was silent, and how long it evaluated an unwanted batch.

    Args:
        timeout_s: The limit of both; while another client waits, the latter has the limit ``UNWANTED_S`` too.

    Attributes:
        interval_s: The time between two checks.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.interval_s = min(LONGEST_INTERVAL_S, timeout_s / INTERVALS)
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """Start again, for a new worker."""
        self._looked = now
        self._silent_s = self._unwanted_s = 0.0
        self._seen: Observation | None = None

    @property
    def silent(self) -> bool:
        """Whether it was silent between the last two checks, so that it needs a probe."""
        return self._silent_s > 0

    def check(self, observation: Observation, now: float) -> str | None:
        """Check an observation; return why the worker must be killed, or None."""
        # A front that was itself stopped has observed nothing, so that time does not count.
        elapsed_s = min(now - self._looked, 2 * self.interval_s)
        seen, self._seen, self._looked = self._seen, observation, now
        still = seen is not None and seen.busy and observation.busy and seen.steps == observation.steps
        self._silent_s = (
            self._silent_s + elapsed_s
            if still and seen and seen.probes_answered == observation.probes_answered
            else 0.0
        )
        self._unwanted_s = self._unwanted_s + elapsed_s if still and not observation.awaited else 0.0
        if self._silent_s >= self.timeout_s:
            return f"has work and gave no sign of life for {self._silent_s:.1f} s"
        if self._unwanted_s >= (min(self.timeout_s, UNWANTED_S) if observation.others_wait else self.timeout_s):
            return f"has been evaluating for {self._unwanted_s:.1f} s what nobody waits for"
        return None
