"""Checks which metrics a request names, and whether its options apply to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lossd.losses.lookup import closest
from lossd.losses.names import meaning
from lossd.metrics.registry import METRICS, TASKS
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = ["check_classes", "check_options", "check_task", "closest_metrics", "from_scores", "resolve"]


def check_task(name: str, *, instead_of: str | None = None) -> None:
    """Check that a task exists, and may replace the loss's own.

    Raises:
        InvalidRequest: It does not exist, or does not fit the loss.
    """
    exchangeable = ({"binary", "multilabel"}, {"multiclass", "segmentation"}, {"pairs", "cosine_pairs"})
    pointer = "/task" if instead_of is None else "/metrics/task"
    if name not in TASKS:
        near = closest(name, TASKS)
        hint = f"did you mean {near[0]}? GET /v1/metrics lists them all" if near else f"there are {', '.join(TASKS)}"
        detail = f"there is no task named {quoted(name)}; {hint}"
    elif instead_of in (None, name) or any({name, instead_of} <= group for group in exchangeable):
        return
    else:
        detail = f"the metrics of task {quoted(name)} do not fit inputs of task {instead_of!r}"
    raise InvalidRequest(detail, errors=[Fault(pointer=pointer, detail=detail)])


def resolve(task_name: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the requested metrics: the task's defaults for None; "default" in a list stands for the defaults.

    Raises:
        InvalidRequest: The task has no metric of a name; the detail names the closest ones.
    """
    known = METRICS.get(task_name, {})
    defaults = [m.name for m in known.values() if m.default]
    resolved: list[str] = []
    for position, name in enumerate(defaults if names is None else names):
        if name == "default":
            resolved.extend(defaults)
        elif name in known:
            resolved.append(name)
        else:
            near = closest_metrics(name, known)
            proposed = f"did you mean {' or '.join(near)}? GET /v1/metrics lists them all"
            hint = proposed if near else f"there are {', '.join(known)}"
            detail = f"the task {task_name} has no metric named {quoted(name)}; {hint}"
            raise InvalidRequest(detail, errors=[Fault(pointer=f"/metrics/names/{position}", detail=detail)])
    return tuple(dict.fromkeys(resolved))


def closest_metrics(name: str, known: Collection[str]) -> list[str]:
    """Return the known metric that other libraries call by a name that none has, else up to three similar names."""
    meant = meaning(name).metric
    return [meant] if meant is not None and meant in known else closest(name, known)


def check_options(task_name: str, options: Mapping[str, Any]) -> None:
    """Check that the options apply to a task.

    Raises:
        InvalidRequest: An option does not apply; ``errors`` points at it.
    """
    if task_name not in TASKS:
        return
    averaged = getattr(TASKS[task_name], "averaged", False)
    if isinstance(options.get("threshold"), list) and "threshold" in TASKS[task_name].options and not averaged:
        detail = f"threshold is a list, one for each label; the task {task_name} has no labels: send one threshold"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/threshold", detail=detail)])
    for name in options.get("names") or ():
        for option, among in METRICS[task_name][name].needs.items() if name in METRICS[task_name] else ():
            if options.get(option) is None:
                detail = f"{name} has no value without metrics.{option}: set it to {among}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/metrics/{option}", detail=detail)])
    if options.get("classes") is not None:
        _check_without_scores(task_name, options.get("names") or ())
    TASKS[task_name].check(options)


def _check_without_scores(task_name: str, names: Sequence[str]) -> None:
    """Check that the task takes class indices as predictions, and that each metric is computed from these."""
    of_scores = TASKS[task_name].of_scores
    if not of_scores:
        takers = " and ".join(name for name, cls in TASKS.items() if cls.of_scores)
        decides = "threshold" in TASKS[task_name].options
        remedy = " and set metrics.from_logits to false for decisions of 0 and 1" if decides else ""
        detail = f"metrics.classes is for the tasks {takers}, which take predicted classes; leave it out{remedy}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/classes", detail=detail)])
    refused = from_scores(task_name)
    faults = [
        Fault(pointer=f"/metrics/names/{position}", detail=f"{name} is computed from scores")
        for position, name in enumerate(names)
        if name in refused
    ]
    if faults:
        needing = " and ".join(fault["detail"].partition(" ")[0] for fault in faults)
        raise InvalidRequest(
            f"{needing} cannot be computed from predicted classes, as metrics.classes says prediction holds; send a "
            "score for each class without metrics.classes, or name other metrics",
            errors=faults,
        )


def from_scores(task_name: str) -> list[str]:
    """Return a task's metrics that class indices in place of scores do not have; none if it takes no class indices."""
    of_scores = TASKS[task_name].of_scores
    return [name for name, entry in METRICS[task_name].items() if not of_scores.isdisjoint(entry.reads or ())]


def check_classes(task_name: str, names: Sequence[str], options: Mapping[str, Any], classes: int) -> None:
    """Check that the options apply to the metrics of so many classes.

    Raises:
        InvalidRequest: An option does not apply; ``errors`` points at it.
    """
    TASKS[task_name].check_classes(names, options, classes)
