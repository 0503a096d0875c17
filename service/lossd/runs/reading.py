"""The result of a run: the task's metrics of its totals, computed and rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np

from lossd.evaluation.diagnostics import warning
from lossd.losses.reduction import Segments
from lossd.metrics.parts import part_of
from lossd.metrics.registry import METRICS, TASKS, View, breakdown
from lossd.request.plan import Plan
from lossd.runs.facts import Facts
from lossd.runs.measuring import LOSS, OF_BATCH, WEIGHT
from lossd.runs.result import RunResult
from lossd.runs.state import RunState
from lossd.runs.totals import RunTotal, SumTotal, TableTotal
from lossd_client.errors import InvalidRequest
from lossd_client.messages import Record
from lossd_client.wire import json

__all__ = ["result_of"]

AREAS = ("auroc", "average_precision")
"""The metrics whose distance from the true value is known if a table is cut."""


def result_of(state: RunState, plan: Plan) -> RunResult:
    """Return the score of the rows that a run has counted; it changes nothing.

    Args:
        state: The run.
        plan: The plan of its definition's request.

    Raises:
        InvalidRequest: No row was counted.
    """
    return _Reading(state, plan).result()


class _Reading:
    def __init__(self, state: RunState, plan: Plan) -> None:
        self.state = state
        self.totals = state.totals
        self.plan = plan

    def result(self) -> RunResult:
        plan, facts, codes = self.plan, self.state.facts, list[str]()
        if facts is None:
            raise InvalidRequest("the run has counted no rows")
        names = [name for name in facts.names if METRICS[plan.task][name].reads is not None]
        found: dict[str, Any] = {}
        if names:
            [found], [codes] = breakdown(plan.task, names, self._view(facts))
        elif facts.names:
            found = {"task": plan.task}
        for name in facts.names:
            if name not in names:
                found[name] = self._quotient(f"{OF_BATCH}{name}")
        flagged = len(names) < len(facts.names)
        loss = None
        if plan.loss is not None:
            loss = self._loss()
            flagged |= plan.loss.kind != "rows"
        warnings = [warning(code) for code in [*codes, *(["depends_on_batches"] if flagged else [])]]
        document = json.numeric({"metrics": found, "warnings": warnings})
        return RunResult(
            loss=loss,
            metrics=Record(document["metrics"]),
            counted=Record({"rows": self.state.rows}),
            missing=[[gap.start, gap.stop] for gap in self.state.missing()],
            bounds=Record(self._bounds(facts)),
            targets=self.state.targets,
            digest=self.state.digest,
            warnings=[Record(entry) for entry in document["warnings"]],
        )

    def _view(self, facts: Facts) -> View:
        """Return the totals as the view of one request without tensors."""
        cls = TASKS[self.plan.task]
        exponent = None
        if facts.weighted:
            exponent = int(np.frexp(self._sums(WEIGHT).numbers(None)[0])[1])
        view = View(
            tensors={},
            segments=Segments([1]),
            activation=facts.activation,
            sample_weight=None,
            ignore_index=None,
            parameters=self.plan.parameters,
            options=self.plan.metric_options.model_dump(exclude={"names", "task"}),
            alone=self.plan.loss is None,
            dtypes=facts.dtypes,
            classes=facts.classes,
            exponent=exponent,
        )
        grouped: dict[str, dict[str, RunTotal]] = {}
        for key, total in self.totals.items():
            part, _, contribution = key.partition(".")
            if hasattr(cls, part):
                grouped.setdefault(part, {})[contribution] = total
        counted = {part: part_of(cls, part).of_totals(found, exponent) for part, found in grouped.items()}
        return view._replace(counted=counted)

    def _sums(self, key: str) -> SumTotal:
        total = self.totals[key]
        assert isinstance(total, SumTotal)
        return total

    def _quotient(self, key: str) -> float | None:
        """Return one total divided by another, rounded once; None if that is 0."""
        size = self._sums(f"{key}.size")
        return None if size.numbers(None)[0] == 0 else float(self._sums(f"{key}.sum").over(size)[0])

    def _loss(self) -> float:
        if self.plan.reduction == "sum":
            return float(self._sums(f"{LOSS}.sum").numbers(None)[0])
        return self._quotient(LOSS) or 0.0  # as an evaluation, where nothing counts

    def _bounds(self, facts: Facts) -> dict[str, Any]:
        bounds: dict[str, Any] = {}
        table = self.totals.get("rankings.scores")
        for name in facts.names:
            if name in AREAS and isinstance(table, TableTotal):
                within, bits = table.bounded(name)
                if within:
                    bounds[name] = {"within": within, "bits": bits}
        errors = self.totals.get("error_table.scores")
        if "error_quantiles" in facts.names and isinstance(errors, TableTotal):
            bracket = errors.quantiles(list(self.plan.metric_options.quantiles))
            if bracket is not None and (bracket[0] != bracket[1]).any():
                within = float(np.max(bracket[1] / 2 - bracket[0] / 2))
                bounds["error_quantiles"] = {"within": within, "bits": errors.tables[0].bits}
        return bounds
