"""Gates on a comparison: what its intervals must prove, so that a pipeline goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lossd_client import Comparison, Difference

__all__ = ["Gate", "GateResult", "Margin", "judged"]


@dataclass(frozen=True, slots=True)
class Gate:
    """What a comparison must prove.

    Attributes:
        metric: The number's name, such as f1.macro.
        margin: How much worse the run may be; None if it must be better.
    """

    metric: str
    margin: float | None

    @property
    def name(self) -> str:
        """The gate as its option."""
        return f"--better {self.metric}" if self.margin is None else f"--not-worse {self.metric}:{self.margin:g}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """What became of a gate.

    Attributes:
        run: The run's name.
        gate: The gate.
        proven: Whether the interval proves it.
        reason: Why, or why not.
    """

    run: str
    gate: Gate
    proven: bool
    reason: str

    def document(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return {
            "run": self.run,
            "gate": "better" if self.gate.margin is None else "not_worse",
            "metric": self.gate.metric,
            "margin": self.gate.margin,
            "proven": self.proven,
            "reason": self.reason,
        }

    def __str__(self) -> str:
        return f"{self.run}, {self.gate.name}: {'proven' if self.proven else 'not proven'}, {self.reason}"


class Margin(click.ParamType[Gate]):
    """A metric and how much worse it may be: f1.macro:0.002."""

    name = "margin"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Gate:
        """Return the gate."""
        metric, colon, text = str(value).rpartition(":")
        try:
            margin = float(text)
        except ValueError:
            margin = math.nan
        if not colon or not metric or not 0 <= margin < math.inf:
            self.fail(f"{value!r} is not METRIC:MARGIN, such as f1.macro:0.002; the margin is 0 or more", param, ctx)
        return Gate(metric, margin)


def judged(comparison: Comparison, gates: Sequence[Gate]) -> list[GateResult]:
    """Return what becomes of gates.

    Raises:
        click.UsageError: A metric was not compared, or has no better side.
    """
    return [_judged(comparison, gate) for gate in gates]


def _judged(comparison: Comparison, gate: Gate) -> GateResult:
    difference = comparison.metrics.get(gate.metric)
    if difference is None:
        known = ", ".join(name for name, each in comparison.metrics.items() if each.better)
        raise click.UsageError(
            f"{gate.name}: {gate.metric} was not compared; there are {known or 'no metrics'}; --metrics names others"
        )
    if difference.better is None:
        raise click.UsageError(f"{gate.name}: neither more nor less of {gate.metric} is better")
    proven, reason = _proof(difference, gate)
    return GateResult(comparison.run, gate, proven, reason)


def _proof(difference: Difference, gate: Gate) -> tuple[bool, str]:
    """Return whether an interval proves a gate, and why.

    Several gates need no correction: each must be proven, so that more of them make a false pass less likely.
    """
    if difference.low is None or difference.high is None:
        return False, "the difference has no interval"
    higher = difference.better == "higher"
    end, at = (difference.low, "begins") if higher else (difference.high, "ends")
    if gate.margin is None:
        proven, bound = (end > 0 if higher else end < 0), f", not {'above' if higher else 'below'} 0"
    else:
        worst = -gate.margin if higher else gate.margin
        proven, bound = (end >= worst if higher else end <= worst), f", {'below' if higher else 'above'} {worst:+.6g}"
    return proven, f"the interval {at} at {end:+.6g}{'' if proven else bound}"
