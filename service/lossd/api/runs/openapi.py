"""The part of the OpenAPI document for ``/v1/runs``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lossd.api.runs.names import (
    COMPARE,
    NAME,
    RUNS,
    BatchesQuery,
    CompareQuery,
    NoQuery,
    OwnerQuery,
    RunQuery,
    RunsQuery,
)
from lossd.api.runs.plots import PlotQuery
from lossd.api.runs.route import SealFields
from lossd.api.schemas import BINARY, NULL, TENSOR, Number, Warning_, header, problems, reference
from lossd.runs.definition import RunFields
from lossd_client.wire import json, safetensors

__all__ = ["MODELS", "paths", "schemas"]

STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 422, 429, 431, 500, 503, 504, 507)


class Counted(BaseModel):
    """What a run has counted."""

    rows: int
    batches: int


ENTRIES = "Entries of the targets without those that ignore_index leaves out: pixels of a segmentation, for example; "


class RunCounted(Counted):
    """What a run has counted, and of how many entries."""

    entries: int | None = Field(description=f"{ENTRIES}null if an earlier version of lossd has counted a batch.")


class RunEntry(BaseModel):
    """A run: its definition in canonical form, and its state."""

    run: str = Field(description="The run's name.")
    owner: str = Field(description="The name of the API key that created it; empty in a service without keys.")
    status: Literal["open", "sealed"]
    loss: dict[str, Any] | None = Field(None, description="The loss: name, and parameters that differ from defaults.")
    task: str | None = Field(None, description="The task of the metrics, without a loss.")
    metrics: dict[str, Any] | None = Field(None, description="The metrics' options that differ from their defaults.")
    identity: Literal["position", "id", "batch"]
    dataset: dict[str, Any] = Field(description="`name`, `version`, `rows` and `targets`, as far as they are known.")
    scope: Literal["rows", "batch"]
    limit: int
    groups: Literal[16, 32, 64] | None = Field(
        None, description="The groups that rows are counted in, if there are any."
    )
    slices: dict[str, list[str]] | None = Field(None, description="The values of each slice, if there are any.")
    crossed: list[list[str]] | None = Field(None, description="The slices that are crossed, if there are any.")
    tags: dict[str, str]
    public: bool
    digest: str = Field(description="The SHA-256 of the definition and of the version of each metric.")
    counted: RunCounted
    created: datetime
    touched: datetime = Field(description="When it last changed.")
    sealed: datetime | None
    summary: dict[str, float] | None = Field(
        description="Numbers of the result by name, such as `f1.macro`. They are final if the run is sealed. In an "
        "open run they are from the latest result that was read, null if none was."
    )
    summary_of: Counted | None = Field(
        description="What had been counted when the summary was made; less than `counted` if the summary is old."
    )


class RunListEntry(RunEntry):
    """A run in a list."""

    intervals: dict[str, list[float]] | None = Field(
        description="The intervals of the summary's numbers, [low, high], as far as they have one."
    )


class Interval(BaseModel):
    """The interval of a number."""

    low: Number
    high: Number
    standard_error: Number


class SliceRows(BaseModel):
    """What a slice has counted."""

    rows: int


class SliceScore(BaseModel):
    """The score of the rows of a slice."""

    slice: dict[str, str] = Field(description="The slice's name and value; a crossing has several.")
    counted: SliceRows
    loss: Number | None = None
    metrics: dict[str, Any]
    intervals: dict[str, Interval]
    bounds: dict[str, Any] = {}
    warnings: list[Warning_] = []


class RunScore(BaseModel):
    """The score of the rows that a run has counted."""

    provisional: bool = Field(description="Whether the run is open.")
    digest: str = Field(description="Equal for equal definitions and rows.")
    loss: Number | None = None
    metrics: dict[str, Any] = Field(description="As in an evaluation.")
    level: float | None = Field(None, description="The level of the intervals.")
    groups: int | None = Field(None, description="The number of groups of rows that the intervals are computed from.")
    intervals: dict[str, Interval] = Field(description="By the number's name: `f1.macro`, `f1.per_class.3`, `loss`.")
    bounds: dict[str, Any] = Field(description="How far metrics may be from their exact values: `within`, `bits`.")
    targets: str | None = Field(description="The fingerprint of the targets.")
    pairing: str | None = Field(
        None, description="The fingerprint of the groups, if that of the targets does not fix them."
    )
    slices: list[SliceScore] = Field([], description="The score of each slice and crossing.")
    worst: dict[str, Any] = Field({}, description="By the number's name: the worst `slice` and its `value`.")
    gap: dict[str, Number] = Field({}, description="By the number's name: the best slice's value minus the worst's.")
    readable: list[str] = Field([], description="The metrics of the task that the parameter `metrics` can name.")
    warnings: list[Warning_]


class ComparedRun(BaseModel):
    """A run of a comparison."""

    run: str
    owner: str
    status: Literal["open", "sealed"]
    provisional: bool = Field(description="Whether the run is open.")
    signature: str | None
    rows: int
    digest: str
    targets: str | None
    values: dict[str, Number | None] = Field(description="By the number's name.")
    intervals: dict[str, Interval]


class DifferenceModel(BaseModel):
    """How a number of a run differs from the baseline's. Without an interval, its ends and odds are null."""

    model_config = ConfigDict(title="Difference")

    baseline: Number | None
    value: Number | None
    difference: Number | None
    low: Number | None
    high: Number | None
    standard_error: Number | None
    p: float | None = Field(description="The probability of a difference at least as large if both are equally good.")
    p_holm: float | None = Field(description="The same, corrected for the number of differences in the comparison.")
    better: Literal["higher", "lower"] | None = Field(description="Which values are better.")
    verdict: Literal["a", "b", "undecided"] | None = Field(description="b: the run is better; a: the baseline is.")


class SliceDifferences(BaseModel):
    """A run compared with the baseline on a slice."""

    slice: dict[str, str]
    rows: int
    metrics: dict[str, DifferenceModel]


class ComparisonModel(BaseModel):
    """A run compared with the baseline."""

    model_config = ConfigDict(title="Comparison")

    run: str
    owner: str
    sentence: str = Field(description="The verdict in words.")
    metrics: dict[str, DifferenceModel] = Field(description="By the number's name.")
    slices: list[SliceDifferences] = []
    warnings: list[Warning_]


class ComparisonAnswer(BaseModel):
    """Runs compared with the first of them."""

    level: float = Field(description="The level of the intervals.")
    paired: bool = Field(description="Whether the runs are compared row group by row group.")
    groups: int = Field(description="The smallest number of groups of rows that an interval is computed from.")
    rows: int
    runs: list[ComparedRun] = Field(description="In the order asked; the first is the baseline.")
    comparisons: list[ComparisonModel] = Field(description="One for each run but the first.")


class RunAnswer(RunEntry):
    """A run and its result."""

    signature: str | None = Field(description="One line that says how the result was judged.")
    missing: list[list[int]] = Field(description="The first ranges of rows not counted, each [first, last + 1].")
    result: RunScore | None = Field(description="The result; null before the first batch.")
    problem: str | None = Field(None, description="Why an open run counts no more batches and has no result.")


class RunList(BaseModel):
    """One page of runs."""

    runs: list[RunListEntry]
    next: str | None = Field(description="The value of `after` for the next page; null on the last.")


class BatchRows(BaseModel):
    """What a batch has counted."""

    rows: int
    entries: int | None = Field(description=f"{ENTRIES}null if an earlier version of lossd has counted it.")


class BatchAnswer(BaseModel):
    """A counted batch, and the run as it was then."""

    batch: str = Field(description="The batch's name.")
    counted: BatchRows
    run: Counted


class BatchEntry(BatchAnswer):
    """A batch of a run."""

    first: int | None = Field(description="The lowest position or id of its rows; null if the batch identifies them.")
    digest: str = Field(
        description="The digest of its content: BLAKE3, or SHA-256 if an earlier version of lossd began the run."
    )
    counted_at: datetime


class BatchList(BaseModel):
    """One page of a run's batches, in the order in which they were counted."""

    batches: list[BatchEntry]
    next: str | None = Field(description="The value of `after` for the next page; null on the last.")


MODELS: tuple[type[BaseModel], ...] = (
    RunFields,
    SealFields,
    RunAnswer,
    RunListEntry,
    RunList,
    BatchAnswer,
    BatchEntry,
    BatchList,
    ComparisonAnswer,
)
"""The schemas that :func:`paths` and :func:`schemas` refer to."""


def schemas(fields: Mapping[str, Any], loss: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas of requests, which take what ``/v1/evaluate`` takes.

    Args:
        fields: The schema of ``RunFields``.
        loss: The schema of the field ``loss`` of an evaluation.
        metrics: The schema of its field ``metrics``.
    """
    properties = {**fields["properties"], "loss": loss, "task": {"anyOf": [{"type": "string"}, NULL]}}
    example = {
        "task": "binary",
        "metrics": ["accuracy", "auroc"],
        "identity": "position",
        "dataset": {"name": "screening", "version": "2", "rows": 50000},
        "tags": {"commit": "4f1c2aa"},
    }
    return {
        "RunDefinition": {
            **fields,
            "title": "RunDefinition",
            "properties": {**properties, "metrics": metrics},
            "example": example,
        },
        "BatchRequest": {
            "type": "object",
            "additionalProperties": False,
            "required": ["inputs"],
            "properties": {
                "first": {
                    "anyOf": [{"type": "integer", "minimum": 0, "maximum": 2**63 - 1}, NULL],
                    "description": "The position of the batch's first row, for runs of identity position.",
                },
                "slices": {
                    "anyOf": [{"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, NULL]}}, NULL],
                    "description": "The value of a slice for all rows of the batch; null for none. Send the run's "
                    "other slices as inputs.",
                    "example": {"site": "A"},
                },
                "inputs": {
                    "type": "object",
                    "additionalProperties": TENSOR,
                    "description": "The tensors of an evaluation. For runs of identity id also sample_id, (N,) "
                    "integers. cluster_id, (N,) integers, says what each row belongs to, such as a patient; intervals "
                    "then take the patients for independent, not the rows. For each slice that slices does not name, "
                    "slice.NAME, (N,) integers: the place of each row's value among the declared values, -1 for none.",
                },
            },
            "example": {"first": 0, "inputs": {"prediction": [2.5, -1.0], "target": [1, 0]}},
        },
    }


def paths() -> dict[str, Any]:
    """Return the paths of ``/v1/runs``."""
    run, batch = _name("run", "resnet50-v3"), _name("batch", "00010")
    location = {"Location": {"schema": {"type": "string"}, "description": "The run's path."}}
    etag = {"ETag": {"schema": {"type": "string"}, "description": "Changes with each batch and with the seal."}}
    if_none_match = header("If-None-Match", "string", "The ETag of the answer that the client already has.")
    timeout = header("X-Request-Timeout-Ms", "integer", "The request is dropped after this many milliseconds.")
    tensors = {
        json.MEDIA_TYPE: {"schema": reference("BatchRequest")},
        safetensors.MEDIA_TYPE: BINARY,
    }
    of_batch = [run, batch, *_query(OwnerQuery)]
    return {
        RUNS: {
            "get": _operation(
                "list_runs", "List your runs and public runs", {"200": _answer("RunList")}, parameters=_query(RunsQuery)
            )
        },
        f"{RUNS}/{{run}}": {
            "get": _operation(
                "get_run",
                "Get a run and its result",
                {"200": {**_answer("RunAnswer"), "headers": etag}, "304": {"description": "Not modified"}},
                "The result of an open run is provisional: it is computed from the batches counted so far. Reading it "
                "changes nothing.",
                parameters=[run, if_none_match, *_query(RunQuery)],
            ),
            "put": _operation(
                "create_run",
                "Create or open a run",
                {
                    "200": _answer("RunListEntry", "The run exists already"),
                    "201": {**_answer("RunListEntry", "The run is created"), "headers": location},
                },
                "Create the run, or open it if it exists with the same definition. The request's tags and `public` "
                "replace those of the run.",
                parameters=[run],
                requestBody={"required": True, "content": {json.MEDIA_TYPE: {"schema": reference("RunDefinition")}}},
            ),
            "delete": _operation("delete_run", "Delete a run", {"204": {"description": "Deleted"}}, parameters=[run]),
        },
        f"{RUNS}/{{run}}/plot.svg": {
            "get": _operation(
                "draw_run",
                "Draw a picture of a run",
                {
                    "200": {
                        "description": "The picture",
                        "content": {"image/svg+xml": {"schema": {"type": "string"}}},
                        "headers": etag,
                    },
                    "304": {"description": "Not modified"},
                },
                parameters=[run, if_none_match, *_query(PlotQuery, kind="confusion")],
            )
        },
        COMPARE: {
            "get": _operation(
                "compare_runs",
                "Compare runs",
                {
                    "200": {**_answer("ComparisonAnswer"), "headers": etag},
                    "304": {"description": "Not modified"},
                },
                "Compare each run with the first on the same rows. Runs with other definitions, rows or targets are "
                "refused (409 `not-comparable`), and the problem's `runs` names each.",
                parameters=[if_none_match, *_query(CompareQuery, run=["resnet50-v3", "resnet50-v4"])],
            )
        },
        f"{RUNS}/{{run}}/seal": {
            "post": _operation(
                "seal_run",
                "Seal a run",
                {"200": {**_answer("RunAnswer", "The final result"), "headers": etag}},
                "Check that all rows are counted, and make the result final. The request may be repeated.",
                parameters=[run],
                requestBody={"required": False, "content": {json.MEDIA_TYPE: {"schema": reference("SealFields")}}},
            )
        },
        f"{RUNS}/{{run}}/batches": {
            "get": _operation(
                "list_batches",
                "List the batches of a run",
                {"200": _answer("BatchList")},
                parameters=[run, *_query(BatchesQuery)],
            )
        },
        f"{RUNS}/{{run}}/batches/{{batch}}": {
            "get": _operation("get_batch", "Get a batch of a run", {"200": _answer("BatchEntry")}, parameters=of_batch),
            "head": _operation(
                "has_batch",
                "Check whether a batch is counted",
                {"200": {"description": "The batch is counted"}},
                parameters=of_batch,
            ),
            "put": _operation(
                "count_batch",
                "Count a batch of rows",
                {
                    "200": _answer("BatchAnswer", "The batch was counted before"),
                    "201": _answer("BatchAnswer", "The batch is counted"),
                },
                "The body is that of an evaluation without loss and options: JSON, or a safetensors file whose "
                '`__metadata__.request` may hold `{"first": 0}`. The service answers after it has stored the batch. If '
                "no answer arrives, send the batch again: it is counted once.",
                parameters=[run, batch, timeout],
                requestBody={"required": True, "content": tensors},
            ),
        },
    }


def _operation(
    name: str, summary: str, responses: Mapping[str, Any], description: str = "", **more: Any
) -> dict[str, Any]:
    return {
        "tags": ["runs"],
        "operationId": name,
        "summary": summary,
        **({"description": description} if description else {}),
        **more,
        "responses": {**responses, **problems(STATUSES)},
    }


def _answer(schema: str, description: str = "The answer") -> dict[str, Any]:
    return {"description": description, "content": {json.MEDIA_TYPE: {"schema": reference(schema)}}}


def _name(what: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^{NAME.pattern}$"}
    return {"name": what, "in": "path", "required": True, "schema": schema, "example": example}


def _query(model: type[NoQuery], **examples: Any) -> list[dict[str, Any]]:
    """Return the parameters of a query, of which some have examples."""
    found = []
    document = model.model_json_schema()
    for name, field in document["properties"].items():
        description = field.pop("description", "")
        field.pop("title", None)
        schema = next((arm for arm in field.pop("anyOf", []) if arm != NULL), field)
        default = {} if field.get("default") is None else {"default": field["default"]}
        description = schema.pop("description", description)
        schema.pop("default", None)
        parameter = {"name": name, "in": "query", "schema": {**schema, **default}, "description": description}
        if name in document.get("required", ()):
            parameter["required"] = True
        if name in examples:
            parameter["example"] = examples[name]
        found.append(parameter)
    return found
