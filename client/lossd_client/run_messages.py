"""Compose the definition and the batches of a run, and read its result; both clients share this module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lossd_client.arrays import plain
from lossd_client.calls import Body
from lossd_client.comparisons import numbers_in, slice_of
from lossd_client.errors import InvalidRequest
from lossd_client.messages import Record, encoded, metric_options, subject, tensors_by_name

__all__ = [
    "Identity",
    "RunResult",
    "compose_batch",
    "compose_definition",
    "dataset_fields",
    "flat",
    "row_ids",
    "slice_codes",
]

SLICE = "slice."
"""What the names of inputs begin with that hold a slice's codes."""

Identity = Literal["position", "id", "batch"]


@dataclass(frozen=True, kw_only=True, repr=False)
class RunResult:
    """The score of the rows that a run has counted.

    Attributes:
        run: The run's name.
        provisional: Whether the run is open; its result may then change.
        loss: The loss over all rows; None without a loss, or if no row was counted.
        metrics: The metrics in the form of an evaluation: ``metrics.f1.macro``. Undefined ones are None.
        counted: The numbers of counted ``rows`` and ``batches``.
        missing: The first ranges of rows that were not counted, as [first, last + 1]; for identities ``position`` and
            ``id`` only.
        level: The level of the intervals, such as 0.95; None without intervals.
        intervals: ``low``, ``high`` and ``standard_error`` by the metric's name: ``intervals["f1.macro"].low``,
            ``intervals["f1.per_class.3"].high``.
        slices: Each slice: ``slice`` (its name and value), ``counted.rows``, ``metrics``, ``intervals``; see
            :meth:`slice`.
        worst: The worst slice by the metric's name: ``slice`` and ``value``.
        gap: The largest difference between two values of one slice, by the metric's name.
        bounds: For each metric that is not exact: the largest possible error (``within``).
        targets: The fingerprint of the targets, ``t1:`` and 32 hexadecimal digits; None if the task has no targets.
        digest: ``s2:`` and the digest of the run's state: equal for equal definitions and rows.
        signature: One line of text with lossd's version, the definition, the rows and the targets, for a paper or a
            report.
        warnings: Warnings, each with ``code`` and ``detail``.
        document: The service's answer.
    """

    run: str
    provisional: bool
    loss: float | None
    metrics: Record
    counted: Record
    missing: list[list[int]]
    level: float | None
    intervals: Record
    slices: list[Record]
    worst: Record
    gap: Record
    bounds: Record
    targets: str | None
    digest: str | None
    signature: str
    warnings: list[Record]
    document: Record

    def slice(self, **values: str) -> Record:
        """Return the score of a slice: ``result.slice(site="A").metrics.f1.macro``.

        Raises:
            KeyError: There is no such slice; the message lists the existing ones.
        """
        found: Record = slice_of(self.slices, values)
        return found

    def flat(self, *, lists: bool = False) -> dict[str, float]:
        """Return the loss and the metrics as numbers by name, for an experiment tracker; see :func:`flat`."""
        return flat(self.loss, self.metrics, lists=lists)

    def __repr__(self) -> str:
        shown = [f"run={self.run!r}", *(["provisional=True"] if self.provisional else [])]
        shown += [f"counted={self.counted!r}", *([] if self.loss is None else [f"loss={self.loss!r}"])]
        return f"RunResult({', '.join([*shown, f'metrics={self.metrics!r}'])})"

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> RunResult:
        """Return the result in the service's document of a run."""
        result = Record(numbers_in(document.get("result") or {}))
        return cls(
            run=document["run"],
            provisional=result.get("provisional", document.get("status") != "sealed"),
            loss=result.get("loss"),
            metrics=result.get("metrics", Record()),
            counted=Record(document.get("counted")),
            missing=document.get("missing") or [],
            level=result.get("level"),
            intervals=result.get("intervals", Record()),
            slices=result.get("slices", []),
            worst=result.get("worst", Record()),
            gap=result.get("gap", Record()),
            bounds=result.get("bounds", Record()),
            targets=result.get("targets"),
            digest=result.get("digest"),
            signature=document.get("signature", ""),
            warnings=result.get("warnings", []),
            document=Record(document),
        )


def flat(loss: Any, metrics: Mapping[str, Any], *, lists: bool = False) -> dict[str, float]:
    """Return the finite numbers of a result by name: ``{"loss": 0.3, "accuracy": 0.9, "f1.macro": 0.8}``.

    ``mlflow.log_metrics`` accepts these names: ``recall@1`` becomes ``recall_at_1``. Undefined, infinite
    and NaN values are left out.

    Args:
        loss: The loss; None or text for none.
        metrics: The metrics, in the form of an evaluation.
        lists: Whether lists of numbers are included, one name for each entry: ``f1.per_class.3``.
    """
    found = {} if loss is None else dict(_numbers("loss", loss, lists))
    for name, value in metrics.items():
        if name not in ("task", "undefined"):
            found.update(_numbers(name, value, lists))
    return found


def _numbers(name: str, value: Any, lists: bool) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(f"{name}.{key}", entry, lists)
    elif isinstance(value, list | tuple):
        for position, entry in enumerate(value if lists else ()):
            yield from _numbers(f"{name}.{position}", entry, lists)
    elif isinstance(value, int | float) and math.isfinite(value):
        yield "".join(c if c.isalnum() or c in "._-/ :" else "_" for c in name.replace("@", "_at_")), float(value)


def compose_definition(
    *,
    task: str | None,
    loss: str | Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | Sequence[str] | str | None,
    dataset: str | Mapping[str, Any] | None,
    rows: int | None,
    targets: str | None,
    tags: Mapping[str, str] | None,
    public: bool | None,
    parameters: Mapping[str, Any],
    **further: Any,
) -> dict[str, Any]:
    """Return the body of ``PUT /v1/runs/{run}``.

    Args:
        task: The task whose metrics are computed; with a loss, the task instead of the loss's own.
        loss: The loss's name, or an object of the name and parameters.
        metrics: The metrics' options, or only their names.
        dataset: The data set's name, ``name@version``, or an object of name, version, rows and targets.
        rows: The data set's number of rows.
        targets: The fingerprint that the targets must have.
        tags: Tags; not part of the definition.
        public: Whether other keys may read the run; not part of the definition.
        parameters: The loss's parameters.
        **further: Further fields, left out if they are None: identity, scope, limit, groups, slices, crossed.

    Raises:
        TypeError: Arguments contradict each other, or neither task nor loss is named.
    """
    document = subject(loss, None if loss is not None else task, parameters)
    options = None if metrics is None else metric_options(metrics)
    if loss is not None and task is not None:
        options = {**(options or {}), "task": task}
    fields = {"metrics": options, "dataset": dataset_fields(dataset, rows, targets), **further, "public": public}
    document |= {name: plain(value) for name, value in fields.items() if value is not None}
    return document | ({"tags": dict(tags)} if tags else {})


def dataset_fields(
    dataset: str | Mapping[str, Any] | None, rows: int | None, targets: str | None
) -> dict[str, Any] | None:
    """Return the field ``dataset`` of a definition; None if nothing is said about it.

    Raises:
        TypeError: Rows or targets are given twice.
    """
    fields: dict[str, Any] = {}
    if isinstance(dataset, str):
        name, at, version = dataset.rpartition("@")
        fields = {"name": name, "version": version} if at else {"name": dataset}
    elif dataset is not None:
        fields = dict(dataset)
    for name, value in (("rows", rows), ("targets", targets)):
        if value is not None and fields.setdefault(name, value) != value:
            raise TypeError(f"the data set's {name} are given twice: {fields[name]!r} and {value!r}")
    return fields or None


def row_ids(ids: Any, name: str = "sample_id") -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the ids of rows as int64, so that the same ids of another dtype are the same batch.

    Args:
        ids: The ids, (N,).
        name: The input's name.

    Raises:
        TypeError: They are no integers, or beyond int64.
    """
    found = _array(ids)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, not {found.dtype}")
    if found.dtype == np.uint64 and (found > np.iinfo(np.int64).max).any():
        raise TypeError(f"{name} has an integer beyond int64")
    return found.astype(np.int64)


def slice_codes(name: str, values: Any, declared: Sequence[str] | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the codes of a slice's values: their numbers among the declared ones, -1 for none.

    Args:
        name: The slice's name.
        values: The value of each row, (N,): texts, of which None is none, or the codes.
        declared: The values that the run declares; None if it declares no such slice.

    Raises:
        InvalidRequest: The run declares no such slice, or not a value.
        TypeError: The values are neither texts nor integers.
    """
    if declared is None:
        raise InvalidRequest(f"the run declares no slice {name}; declare it with its values when the run is created")
    found = _array(values)
    if found.dtype.kind in "iu":
        return found.astype(np.int64)
    if found.dtype.kind not in "UO":
        raise TypeError(f"the values of the slice {name} must be texts or codes, not {found.dtype}")
    codes: dict[Any, int] = {None: -1, **{value: code for code, value in enumerate(declared)}}
    for value in dict.fromkeys(found.ravel().tolist()):
        if value not in codes:
            raise InvalidRequest(
                f"the slice {name} has no value {value!r}; its values are {', '.join(declared)}, and None for none"
            )
    return np.array([codes[value] for value in found.ravel().tolist()], np.int64).reshape(found.shape)


def _array(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


def compose_batch(
    prediction: Any,
    target: Any,
    *others: Mapping[str, Any] | None,
    first: int | None,
    sample_id: Any,
    cluster_id: Any = None,
    slices: Mapping[str, Any] | None = None,
    declared: Mapping[str, Sequence[str]] | None = None,
) -> Body:
    """Return the safetensors body of ``PUT /v1/runs/{run}/batches/{batch}``.

    Args:
        prediction: The input ``prediction``, or None.
        target: The input ``target``, or None.
        *others: Further inputs by name.
        first: The position of the batch's first row, or None.
        sample_id: The rows' ids, (N,) integers, or None.
        cluster_id: The ids of the rows' clusters, (N,) integers, or None.
        slices: The value of each slice: a text for the whole batch, or (N,) texts or codes.
        declared: The values of each slice that the run declares.

    Raises:
        InvalidRequest: A slice or a value is not declared.
        TypeError: An input is given twice, or the wire does not carry a tensor's dtype.
    """
    ids = {"sample_id": sample_id, "cluster_id": cluster_id}
    request: dict[str, Any] = {} if first is None else {"first": first}
    for name, value in (slices or {}).items():
        if value is None or isinstance(value, str):
            request.setdefault("slices", {})[name] = value
        else:
            ids[f"{SLICE}{name}"] = value
    tensors = tensors_by_name(
        prediction, target, *others, {name: value for name, value in ids.items() if value is not None}
    )
    for name, value in tensors.items():
        if name in ("sample_id", "cluster_id"):
            tensors[name] = row_ids(value, name)
        elif name.startswith(SLICE):
            slice_name = name.removeprefix(SLICE)
            tensors[name] = slice_codes(slice_name, value, (declared or {}).get(slice_name))
    return encoded(request, tensors).body
