"""Whether a worker that has work is alive: pure judgement, from its heartbeat and the time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Liveness", "Observation"]

LONGEST_INTERVAL_S = 1.0
INTERVALS = 4

UNWANTED_S = 2.0
"""How long a worker may go on with what nobody wants where somebody waits for something else."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a front sees of a worker.

    Attributes:
        steps: See :class:`lossd.engine.heartbeat.Heartbeat`.
        probes_answered: Likewise.
        busy: Whether it has work of this front.
        wanted: Whether anybody waits for what it is evaluating; so it is where that is another front's.
        others_wait: Whether anybody waits for, or may wait for, something that comes after it.
    """

    steps: int
    probes_answered: int
    busy: bool
    wanted: bool
    others_wait: bool = False


class Liveness:
    """Counts for how long a worker gave no sign, and for how long it was busy with what nobody wants.

    Args:
        timeout_s: How long either may take; the latter no longer than ``UNWANTED_S`` where somebody else waits.

    Attributes:
        interval_s: How often to look.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.interval_s = min(LONGEST_INTERVAL_S, timeout_s / INTERVALS)
        self.reset(0.0)

    def reset(self, now: float) -> None:
        """A new worker."""
        self._looked = now
        self._silent_s = self._unwanted_s = 0.0
        self._seen: Observation | None = None

    @property
    def silent(self) -> bool:
        """Whether it gave no sign between the last two looks: it ought to be asked for one."""
        return self._silent_s > 0

    def check(self, observation: Observation, now: float) -> str | None:
        """Look once more; why the worker must go, if it must."""
        # A front that was itself stopped has seen nothing meanwhile, and judges nobody by it.
        elapsed_s = min(now - self._looked, 2 * self.interval_s)
        seen, self._seen, self._looked = self._seen, observation, now
        still = seen is not None and seen.busy and observation.busy and seen.steps == observation.steps
        self._silent_s = (
            self._silent_s + elapsed_s
            if still and seen and seen.probes_answered == observation.probes_answered
            else 0.0
        )
        self._unwanted_s = self._unwanted_s + elapsed_s if still and not observation.wanted else 0.0
        if self._silent_s >= self.timeout_s:
            return f"has work and gave no sign of life for {self._silent_s:.1f} s"
        if self._unwanted_s >= (min(self.timeout_s, UNWANTED_S) if observation.others_wait else self.timeout_s):
            return f"has been evaluating for {self._unwanted_s:.1f} s what nobody waits for"
        return None
