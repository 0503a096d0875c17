"""The definition of a run as a document: the body of ``PUT /v1/runs/{run}``, checked and in canonical form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field

from lossd.exact.table import ROWS
from lossd.losses.registry import Loss
from lossd.losses.types import FIRST_FAULT
from lossd.metrics.registry import METRICS
from lossd.request.fields import check_entries, validated
from lossd.request.options import MetricOptions, spelled_out
from lossd.request.plan import Plan
from lossd.request.planning import elsewhere, make_plan
from lossd.runs.differences import differing
from lossd.runs.rows.fingerprint import Fingerprint
from lossd.runs.rows.strata import check_strata
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["RunDocument"]

LEAST_LIMIT, MOST_LIMIT = 2, 1 << 24
MOST_ROWS = (1 << 63) - 1
MOST_TAGS = 64
SHOWN_DIGITS = 16
"""Hexadecimal digits of a digest in a signature."""

GROUPS: Literal[0, 16, 32, 64] = 64
"""The groups that rows are counted in, unless a definition says otherwise."""

Text = Annotated[str, Field(min_length=1, max_length=200)]
SliceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class DataSet(_Fields):
    """The data set that a run is about."""

    name: Text | None = Field(None, description="The data set's name.")
    version: Text | None = Field(None, description="The data set's version.")
    rows: Annotated[int, Field(ge=0, le=MOST_ROWS)] | None = Field(
        None, description="The number of rows; then a run without all of them cannot be sealed."
    )
    targets: str | None = Field(
        None,
        description="The fingerprint of the targets, t1: and 32 hexadecimal digits, as a result states it; then a run "
        "of other targets cannot be sealed.",
    )


class RunFields(_Fields):
    """What a run counts, and how."""

    loss: dict[str, Any] | None = Field(None, description="The loss: its name, or an object of name and parameters.")
    task: str | None = Field(None, description="The task of the metrics, if there is no loss.")
    metrics: MetricOptions | None = Field(
        None, description="The names of the metrics, or an object of names and options; [] counts the loss alone."
    )
    identity: Literal["position", "id", "batch"] = Field(
        "batch",
        description="How rows are told apart, so that none counts twice: each batch says where it begins (first), each "
        "row has an integer (the input sample_id), or each batch has a name.",
    )
    dataset: DataSet = Field(DataSet(), description="The data set.")
    scope: Literal["rows", "batch"] = Field(
        "rows",
        description="batch allows metrics that compare the rows of a batch with each other: the result is the mean of "
        "the batches' values, which depends on the split.",
    )
    limit: Annotated[int, Field(ge=LEAST_LIMIT, le=MOST_LIMIT)] = Field(
        ROWS, description="The maximum number of rows in the tables of one metric; a row takes 20 bytes."
    )
    groups: Literal[0, 16, 32, 64] = Field(
        GROUPS,
        description="The number of groups in which rows are counted apart, for the intervals; 0 for no intervals. Each "
        "group takes as much room as the run.",
    )
    slices: dict[SliceName, Annotated[list[Text], Len(1), FIRST_FAULT]] = Field(
        default_factory=dict,
        description='The values of each slice by its name, such as {"site": ["A", "B"]}; the metrics of the rows of '
        "each value are counted too.",
    )
    crossed: Annotated[list[Annotated[list[str], FIRST_FAULT]], FIRST_FAULT] = Field(
        default_factory=list,
        description='Slices whose combinations of values are counted too, such as [["site", "sex"]].',
    )
    tags: Annotated[dict[Text, Annotated[str, Field(max_length=1000)]], Len(0, MOST_TAGS)] = Field(
        default_factory=dict, description="Text by name, such as a commit; not part of the definition."
    )
    public: bool = Field(False, description="Whether other keys may read the run; not part of the definition.")


_PARTS_OF_A_BATCH = ("inputs", "first", "sample_id")


@dataclass(frozen=True, eq=False)
class RunDocument:
    """A checked definition of a run.

    Attributes:
        subject: ``{"task": name}`` or ``{"loss": {"name": …}}``, with the parameters that differ from their defaults.
        options: The metrics' options that differ from their defaults.
        plan: The plan of the batches' requests.
        identity: How rows are told apart: position, id or batch.
        scope: Whether metrics that compare the rows of a batch are allowed: rows or batch.
        limit: The most rows of the tables of one metric.
        groups: The groups of rows that are counted apart; 0 for none.
        slices: The values of each slice, by its name.
        crossed: The names of the slices of each crossing.
        dataset: ``name``, ``version``, ``rows`` and ``targets``, as far as they are known.
        tags: Text by name.
        public: Whether other keys may read the run.
    """

    subject: Mapping[str, Any]
    options: Mapping[str, Any]
    plan: Plan
    identity: str
    scope: str
    limit: int
    groups: int
    slices: Mapping[str, Sequence[str]]
    crossed: Sequence[Sequence[str]]
    dataset: Mapping[str, Any]
    tags: Mapping[str, str]
    public: bool

    @classmethod
    def parse(cls, document: Any) -> RunDocument:
        """Return the definition of a JSON document.

        Raises:
            UnknownLoss: The loss is unknown; the detail names the closest ones.
            InvalidRequest: A field is unknown, mistyped or out of range, or the loss or a metric does not add up over
                batches; ``errors`` points at each fault.
        """
        if not isinstance(document, dict):
            raise InvalidRequest("the definition of a run must be a JSON object with the field task or loss")
        check_entries(document)
        document = spelled_out(document)
        fields = validated(RunFields, document, "", partial(_belongs, document.get("loss")))
        _check_targets(fields.dataset.targets)
        check_strata(fields.slices, fields.crossed)
        options = {} if fields.metrics is None else fields.metrics.model_dump(exclude_defaults=True)
        plan = make_plan(_request(_subject(fields), options, ["loss", "metrics"] if fields.loss else ["metrics"]))
        if plan.terms and not options.get("names"):
            options = {"names": []}
        _check_countable(plan, options, fields.scope)
        subject = {"task": plan.task} if plan.loss is None else {"loss": _without_defaults(plan, plan.loss)}
        return cls(
            subject=subject,
            options=options,
            plan=_by_batch(make_plan(_request(subject, options, _outputs(plan, options)))),
            identity=fields.identity,
            scope=fields.scope,
            limit=fields.limit,
            groups=fields.groups,
            slices=fields.slices,
            crossed=fields.crossed,
            dataset=fields.dataset.model_dump(exclude_none=True),
            tags=fields.tags,
            public=fields.public,
        )

    @classmethod
    def stored(cls, document: Mapping[str, Any]) -> RunDocument:
        """Return the definition that :meth:`to_dict` wrote; one of before there were groups has none.

        Raises:
            Problem: This version of lossd does not accept it.
        """
        return cls.parse({"groups": 0, **document})

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> RunDocument:
        """Return the document of a definition, which may come from anybody.

        Raises:
            Problem: The definition is wrong, or not in canonical form.
        """
        request = definition["request"]
        fields = {name: request[name] for name in ("loss", "task", "metrics") if name in request}
        if "metrics" not in request["outputs"]:
            fields["metrics"] = []
        fields |= {name: definition[name] for name in ("identity", "scope", "limit")}
        fields |= {name: definition[name] for name in ("groups", "slices", "crossed") if name in definition}
        found = cls.stored({**fields, "dataset": {"rows": definition["rows"]}})
        if found.definition != definition:
            raise InvalidRequest("the definition of the run is not in canonical form")
        return found

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The definition in a run's state: ``request``, ``identity``, ``rows``, ``scope``, ``limit`` and strata."""
        return {
            "request": _request(self.subject, self.options, _outputs(self.plan, self.options)),
            "identity": self.identity,
            "rows": self.dataset.get("rows"),
            "scope": self.scope,
            "limit": self.limit,
            **self._counted_apart,
        }

    @property
    def _counted_apart(self) -> dict[str, Any]:
        """The groups, slices and crossings; those that there are none of are left out, as before there were any."""
        fields = {
            "groups": self.groups,
            "slices": {name: list(values) for name, values in self.slices.items()},
            "crossed": [list(names) for names in self.crossed],
        }
        return {name: value for name, value in fields.items() if value}

    @cached_property
    def versions(self) -> dict[str, int]:
        """The version of each metric's definition."""
        return {name: METRICS[self.plan.task][name].version for name in self.plan.metrics}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the definition, the data set and the metrics' versions, 64 hexadecimal digits."""
        text = _canonical([self.definition, self.dataset, self.versions])
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical document, of which :meth:`parse` makes the same definition."""
        return {
            **self.subject,
            **({"metrics": dict(self.options)} if self.options else {}),
            "identity": self.identity,
            "dataset": dict(self.dataset),
            "scope": self.scope,
            "limit": self.limit,
            **self._counted_apart,
            "tags": dict(self.tags),
            "public": self.public,
        }

    def differences(self, other: RunDocument) -> list[str]:
        """Return pointers to the fields that differ from those of another definition; tags and public may differ."""
        documents = [{**d.to_dict(), "tags": {}, "public": False} for d in (self, other)]
        return list(differing(documents[0], documents[1]))

    def signature(self, rows: int, targets: str | None, release: str) -> str:
        """Return one line that says how a result was judged: ``lossd 1.4|multiclass|zero_division=null|rows=50000|…``.

        Args:
            rows: How many rows were counted.
            targets: The fingerprint of their targets; None for none.
            release: The version of lossd, of which the first two numbers are named.
        """
        loss: Mapping[str, Any] | None = self.subject.get("loss")
        parameters = {key: value for key, value in (loss or {}).items() if key != "name"}
        options = {"zero_division": None, **self.options}
        options.pop("names", None)
        fields = {
            **parameters,
            **options,
            **({} if self.identity == "batch" else {"identity": self.identity}),
            **({} if self.scope == "rows" else {"scope": self.scope}),
            "rows": rows,
            "targets": None if targets is None else targets.partition(":")[2][:SHOWN_DIGITS],
            "definition": self.digest[:SHOWN_DIGITS],
        }
        texts = (f"{key}={value if isinstance(value, str) else _canonical(value)}" for key, value in fields.items())
        judge = f"lossd {'.'.join(release.split('.')[:2])}"
        return "|".join([judge, self.plan.task if loss is None else loss["name"], *texts])


def _belongs(loss: Any, name: str) -> str:
    """Return where an unknown field belongs, as the end of a sentence."""
    if name in DataSet.model_fields:
        return "it belongs to the data set: put it into dataset"
    if name in _PARTS_OF_A_BATCH:
        return "it is part of a batch: PUT /v1/runs/{run}/batches/{batch}"
    if name in ("outputs", "gradient"):
        return "a run answers its loss and its metrics, and no gradient"
    return elsewhere(loss, name)


def _subject(fields: RunFields) -> dict[str, Any]:
    subject = {"loss": fields.loss, "task": fields.task}
    return {name: value for name, value in subject.items() if value is not None}


def _request(subject: Mapping[str, Any], options: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """Return the request of a batch without its tensors."""
    metrics = {"metrics": dict(options)} if options and "metrics" in outputs else {}
    return {**subject, "outputs": list(outputs), **metrics}


def _outputs(plan: Plan, options: Mapping[str, Any]) -> list[str]:
    if plan.loss is None:
        return ["metrics"]
    return ["loss", "metrics"] if plan.metrics and options.get("names") != [] else ["loss"]


def _by_batch(plan: Plan) -> Plan:
    """Return the plan, by which a batch of a loss without an axis of rows is one row whatever its shapes are."""
    return replace(plan, by_row=False) if plan.loss is not None and plan.loss.kind == "alone" else plan


def _without_defaults(plan: Plan, loss: Loss) -> dict[str, Any]:
    """Return the object of a loss with the parameters that differ from their defaults."""
    parameters = {p.name: plan.parameters[p.name] for p in loss.parameters if plan.parameters[p.name] != p.default}
    reduction = {} if plan.reduction == loss.reductions[0] else {"reduction": plan.reduction}
    missing = {"nan_targets": "ignore"} if plan.ignores_nan else {}
    return {"name": loss.name, **parameters, **reduction, **missing}


def _check_targets(targets: str | None) -> None:
    if targets is None:
        return
    try:
        Fingerprint.parse(targets)
    except InvalidRequest as problem:
        pointer = "/dataset/targets"
        raise InvalidRequest(problem.detail, errors=[Fault(pointer=pointer, detail=problem.detail)]) from None


def _check_countable(plan: Plan, options: Mapping[str, Any], scope: str) -> None:
    """Check that the loss and the metrics add up over batches.

    Raises:
        InvalidRequest: The loss is not reduced, a metric has no value over batches, or nothing is counted.
    """
    names = options.get("names")
    if plan.loss is not None and plan.reduction == "none":
        detail = "a run has one loss for all rows; choose reduction mean or sum"
        raise InvalidRequest(detail, errors=[Fault(pointer="/loss/reduction", detail=detail)])
    if plan.loss is not None and plan.terms and names:
        detail = f"a run of the composed loss {plan.loss.name} has no metrics; start a run of the task for them"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/names", detail=detail)])
    if plan.loss is None and not plan.metrics:
        detail = f"the run would count nothing: name a metric of {plan.task}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/names", detail=detail)])
    faults = []
    for name in plan.metrics:
        if scope != "batch" and METRICS[plan.task][name].reads is None:
            instead = "" if plan.loss is None else "; metrics [] counts the loss alone"
            detail = (
                f"{name} compares the rows of a batch with each other, so a run has no value of it; "
                f"scope batch answers the mean of the batches' values, which depends on the split{instead}"
            )
            place = f"/{names.index(name)}" if names and name in names else ""
            faults.append(Fault(pointer=f"/metrics/names{place}", detail=detail))
    if faults:
        raise InvalidRequest("; ".join(fault["detail"] for fault in faults), errors=faults)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
