"""``GET /v1/runs/{run}/plot.svg``: pictures of a run's result."""

from __future__ import annotations

import json as lines
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from lossd.api.runs.names import Level, OwnerQuery, RunQuery, Text
from lossd.metrics import METRICS
from lossd.metrics.counts import LABELS
from lossd.pictures.kinds import KINDS
from lossd_client.errors import Fault, InvalidRequest, NotEvaluable
from lossd_client.run_messages import flat
from lossd_client.wire import json

__all__ = ["PlotQuery", "drawn_document", "needed"]

SLICES = "slices"


class PlotQuery(OwnerQuery):
    """The query parameters of a picture of a run."""

    kind: Literal["roc", "pr", "confusion", "reliability", "slices"] = Field(description="The kind of picture.")
    metric: Text | None = Field(
        None, description="For slices: the number to draw, such as f1.macro; by default the first of the run."
    )
    level: Level | None = Field(None, description="For slices: the level of the intervals; 0.95 by default.")
    theme: Literal["auto", "light", "dark"] = Field(
        "auto", description="The colours; auto follows the reader's system."
    )


def needed(parameters: PlotQuery, task: str | None) -> RunQuery:
    """Return the question for the result that a picture shows.

    Raises:
        InvalidRequest: The task has no picture of that kind, or a parameter belongs to another kind.
    """
    if parameters.kind == SLICES:
        metric = None if parameters.metric is None else parameters.metric.partition(".")[0]
        return RunQuery(metrics=None if metric == "loss" else metric, level=parameters.level)
    if parameters.metric is not None or parameters.level is not None:
        name = "metric" if parameters.metric is not None else "level"
        raise _wrong(name, f"{name} belongs to pictures of slices, not to kind {parameters.kind}; leave it out")
    names = of_kind(parameters.kind, task)
    if not names:
        fitting = [*(kind for kind in KINDS if of_kind(kind, task)), SLICES]
        raise _wrong("kind", f"kind is {parameters.kind}; pictures of a run of {task} are {', '.join(fitting)}")
    return RunQuery(metrics=",".join(names), slices=False)


def of_kind(kind: str, task: str | None) -> list[str]:
    """Return the metrics that a picture of that kind needs; empty if the task lacks them."""
    if kind == "confusion" and task in LABELS:  # each label has a matrix of its own
        return []
    has = METRICS.get(str(task), {})
    return [name for name in KINDS[kind] if name in has] if KINDS[kind][0] in has else []


def drawn_document(parameters: PlotQuery, result: Mapping[str, Any] | None) -> bytes:
    """Return the JSON of the part of a result that a picture shows.

    Raises:
        NotEvaluable: There is nothing to draw.
        InvalidRequest: The result has no such number.
    """
    if result is None:
        raise NotEvaluable("the run has counted no rows, so there is nothing to draw")
    result = json.numeric(result)
    document = _slices(parameters, result) if parameters.kind == SLICES else result["metrics"]
    return lines.dumps(document).encode()


def _slices(parameters: PlotQuery, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of each slice with its interval, the worst first."""
    if not result.get("slices"):
        raise NotEvaluable("the run has no slices; declare them when the run is created")
    every = flat(result.get("loss"), result["metrics"], lists=True)
    metric = parameters.metric or next(iter(flat(None, result["metrics"]) or every))
    if metric not in every:
        raise _wrong("metric", f"the run has no number {metric}; it has {', '.join(every)}")
    better = METRICS[result["metrics"]["task"]].get(metric.partition(".")[0]) if "task" in result["metrics"] else None
    rising = metric != "loss" and (better is None or better.better != "lower")
    slices = []
    for each in result["slices"]:
        numbers = flat(each.get("loss"), each["metrics"], lists=True)
        if metric in numbers:
            label = ", ".join(f"{name}={value}" for name, value in each["slice"].items())
            ends = _ends(each, metric)
            slices.append({"label": label, "rows": each["counted"]["rows"], "value": numbers[metric], **ends})
    if not slices:
        raise NotEvaluable(f"{metric} is undefined on every slice, so there is nothing to draw")
    slices.sort(key=lambda each: each["value"], reverse=not rising)
    return {
        "metric": metric,
        "level": result.get("level") or 0.95,
        "all": {"value": every[metric], **_ends(result, metric)},
        "slices": slices,
    }


def _ends(result: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    interval = result.get("intervals", {}).get(metric) or {}
    return {"low": interval.get("low"), "high": interval.get("high")}


def _wrong(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, errors=[Fault(pointer=f"/{name}", detail=detail)])
