"""The definition of a run as a document: the body of ``PUT /v1/runs/{run}``, checked and in canonical form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field

from lossd.losses.registry import Loss
from lossd.metrics.registry import METRICS
from lossd.request.options import MetricOptions, check_entries, spelled_out, validated
from lossd.request.plan import Plan
from lossd.request.planning import elsewhere, make_plan
from lossd.runs.differences import differing
from lossd.runs.fingerprint import Fingerprint
from lossd.runs.table import ROWS
from lossd_client.errors import Fault, InvalidRequest

__all__ = ["RunDocument"]

LEAST_LIMIT, MOST_LIMIT = 2, 1 << 24
MOST_ROWS = (1 << 63) - 1
MOST_TAGS = 64
SHOWN_DIGITS = 16
"""Hexadecimal digits of a digest in a signature."""

Text = Annotated[str, Field(min_length=1, max_length=200)]


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
        ROWS, description="The most rows of the tables of one metric, 20 bytes each."
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
        options = {} if fields.metrics is None else fields.metrics.model_dump(exclude_defaults=True)
        plan = make_plan(_request(_subject(fields), options, ["loss", "metrics"] if fields.loss else ["metrics"]))
        if plan.terms and not options.get("names"):
            options = {"names": []}
        _check_countable(plan, options, fields.scope)
        subject = {"task": plan.task} if plan.loss is None else {"loss": _without_defaults(plan, plan.loss)}
        return cls(
            subject=subject,
            options=options,
            plan=make_plan(_request(subject, options, _outputs(plan, options))),
            identity=fields.identity,
            scope=fields.scope,
            limit=fields.limit,
            dataset=fields.dataset.model_dump(exclude_none=True),
            tags=fields.tags,
            public=fields.public,
        )

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
        found = cls.parse({**fields, "dataset": {"rows": definition["rows"]}})
        if found.definition != definition:
            raise InvalidRequest("the definition of the run is not in canonical form")
        return found

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The definition in a run's state: ``request``, ``identity``, ``rows``, ``scope`` and ``limit``."""
        return {
            "request": _request(self.subject, self.options, _outputs(self.plan, self.options)),
            "identity": self.identity,
            "rows": self.dataset.get("rows"),
            "scope": self.scope,
            "limit": self.limit,
        }

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
    given = {"loss": fields.loss, "task": fields.task}
    return {name: value for name, value in given.items() if value is not None}


def _request(subject: Mapping[str, Any], options: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """Return the request of a batch without its tensors."""
    metrics = {"metrics": dict(options)} if options and "metrics" in outputs else {}
    return {**subject, "outputs": list(outputs), **metrics}


def _outputs(plan: Plan, options: Mapping[str, Any]) -> list[str]:
    if plan.loss is None:
        return ["metrics"]
    return ["loss", "metrics"] if plan.metrics and options.get("names") != [] else ["loss"]


def _without_defaults(plan: Plan, loss: Loss) -> dict[str, Any]:
    """Return the object of a loss with the parameters that differ from their defaults."""
    given = {p.name: plan.parameters[p.name] for p in loss.parameters if plan.parameters[p.name] != p.default}
    reduction = {} if plan.reduction == loss.reductions[0] else {"reduction": plan.reduction}
    return {"name": loss.name, **given, **reduction}


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
