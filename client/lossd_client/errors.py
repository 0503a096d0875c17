"""Every error of lossd, as one tree; service and client raise the same classes.

::

    LossdError
    ├── ConnectionFailed            no answer: nothing listens, the connection broke, or the time-out passed
    ├── UnreadableAnswer            not an answer of lossd: of another program or a proxy, or a broken one
    └── Problem                     an answer with a problem document (RFC 9457)
        ├── MalformedBody           400  the body cannot be read as its content type says
        ├── MalformedRequest        400  the bytes are not an HTTP request
        ├── Unauthorized            401  no key, or an unknown key
        ├── Forbidden               403  the Host or the Origin is not one that the service trusts
        ├── QuotaExceeded           403  the key or a run has reached its limit of runs or bytes
        ├── NotFound                404  no such route
        │   ├── UnknownLoss         404  no loss of that name
        │   ├── UnknownMetric       404  no metric of that name
        │   ├── UnknownRun          404  no run of that name, or another key's
        │   └── UnknownBatch        404  the run has counted no batch of that name
        ├── MethodNotAllowed        405
        ├── RequestTimeout          408  the request arrived too slowly, or not at all
        ├── Conflict                409  the run's state forbids it; nothing was changed
        │   ├── RunDiffers          409  a run of that name exists with another definition
        │   ├── BatchConflict       409  a batch of that name was counted with other data
        │   ├── DuplicateRows       409  rows were counted before
        │   ├── RunSealed           409  the run is sealed: it counts no more rows
        │   ├── Incomplete          409  rows are missing, so the run is not sealed
        │   ├── OtherTargets        409  the targets are not those of the run's definition
        │   ├── DefinitionChanged   409  a metric's definition has changed since the run began
        │   └── NotComparable       409  runs differ in more than their predictions
        ├── TooLarge                413  over one of the service's limits, or its memory
        │   ├── UriTooLong          414  the address is over the limit of a head
        │   └── HeadTooLarge        431  the head or the trailers have too many bytes or fields
        ├── UnsupportedMediaType    415  a content type or encoding that lossd does not read
        ├── NotEvaluable            422  well-formed, but not computable
        │   ├── InvalidRequest      422  an unknown or mistyped field, a parameter out of its range
        │   ├── MissingInput        422  a tensor the loss needs was not sent
        │   ├── UnknownInput        422  a tensor the loss does not take
        │   ├── ShapeMismatch       422
        │   ├── DtypeMismatch       422
        │   └── InvalidValue        422  a tensor's entry is outside its domain
        ├── QueueFull               429  retry after ``retry_after_s``
        ├── InternalError           500  a fault of the service; quote the request id
        ├── Unavailable             503  shutting down, or no worker is available
        ├── DeadlineExceeded        504  the request's own deadline passed first
        └── StorageFull             507  the disk or the database has no room for a run
"""

# ruff: noqa: N818  (the names say what happened; the tree says that they are errors)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict

__all__ = [
    "PROBLEMS",
    "BatchConflict",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "DefinitionChanged",
    "DtypeMismatch",
    "DuplicateRows",
    "Fault",
    "Forbidden",
    "HeadTooLarge",
    "Incomplete",
    "InternalError",
    "InvalidRequest",
    "InvalidValue",
    "LossdError",
    "MalformedBody",
    "MalformedRequest",
    "MethodNotAllowed",
    "MissingInput",
    "NotComparable",
    "NotEvaluable",
    "NotFound",
    "OtherTargets",
    "Problem",
    "QueueFull",
    "QuotaExceeded",
    "RequestTimeout",
    "RunDiffers",
    "RunSealed",
    "ShapeMismatch",
    "StorageFull",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnknownBatch",
    "UnknownInput",
    "UnknownLoss",
    "UnknownMetric",
    "UnknownRun",
    "UnreadableAnswer",
    "UnsupportedMediaType",
    "UriTooLong",
]


class Fault(TypedDict):
    """One of several faults in a request: its place (an RFC 6901 pointer) and a description."""

    pointer: str
    detail: str


class LossdError(Exception):
    """Base class of every error of lossd.

    Args:
        detail: One sentence: what, where, expected, found, remedy.
        request_id: The request's id: ``X-Request-ID``, and in the service's log.
    """

    def __init__(self, detail: str, *, request_id: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id

    def __str__(self) -> str:
        return self.detail if self.request_id is None else f"{self.detail} (request {self.request_id})"


class ConnectionFailed(LossdError):
    """No answer came: nothing listens at the address, the connection broke, or the client's time-out passed."""


class UnreadableAnswer(LossdError):
    """The answer is not lossd's: another program listens at the address, or a proxy answered."""


class Problem(LossdError):
    """An error the service answers with.

    Args:
        detail: One sentence: what, where, expected, found, remedy.
        errors: The separate faults; empty if there is one fault without a place in the request.
        request_id: The request's id: ``X-Request-ID``, and in the service's log.
        retry_after_s: Seconds after which the same request may succeed; None if the answer does not say.
    """

    slug: ClassVar[str] = "problem"
    title: ClassVar[str] = "Problem"
    members: ClassVar[tuple[str, ...]] = ()
    """The attributes that are members of the document too (RFC 9457, extension members)."""
    status: int = 500

    def __init__(
        self,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail, request_id=request_id)
        self.errors = list(errors)
        self.retry_after_s = retry_after_s

    def to_json(self) -> dict[str, Any]:
        """Return the RFC 9457 document."""
        document: dict[str, Any] = {
            "type": f"/problems/{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = self.errors
        document |= {name: value for name in self.members if (value := getattr(self, name))}
        if self.request_id is not None:
            document["request_id"] = self.request_id
        return document

    @staticmethod
    def from_json(
        document: Mapping[str, Any],
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> Problem:
        """Return the exception of a problem document; an unknown type becomes the class of its status.

        Args:
            document: The document of any sender; missing or mistyped fields are ignored.
            status: The status of the answer; the default is the document's own.
            request_id: The id to use if the document has none.
            retry_after_s: The answer's Retry-After, in seconds.
        """
        if status is None:
            stated = document.get("status")
            status = stated if type(stated) is int else InternalError.status
        kind = PROBLEMS.get(str(document.get("type", "")).rpartition("/")[2])
        if kind is None:
            fallback = InternalError if status >= 500 else Problem
            kind = next((k for k in PROBLEMS.values() if k.status == status), fallback)
        errors = document.get("errors")
        problem = kind(
            str(document.get("detail") or document.get("title") or f"the answer has HTTP status {status}"),
            errors=errors if isinstance(errors, list) else (),
            request_id=str(document.get("request_id") or request_id or "") or None,
            retry_after_s=retry_after_s,
        )
        problem.status = status
        for name in kind.members:
            if isinstance(value := document.get(name), type(getattr(problem, name))):
                setattr(problem, name, value)
        return problem


class MalformedBody(Problem):
    """The body does not match its Content-Type: broken JSON, or a truncated or false safetensors header."""

    slug, title, status = "malformed-body", "Malformed body", 400


class MalformedRequest(Problem):
    """The bytes are not an HTTP request, or an ambiguous one: no Host or two, a chunk without a size."""

    slug, title, status = "malformed-request", "Malformed request", 400


class Unauthorized(Problem):
    """The service requires a key, and the request has none or an unknown one."""

    slug, title, status = "unauthorized", "Unauthorized", 401


class Forbidden(Problem):
    """The Host is not a name of the service, or a page of another origin sent the request to a service without keys."""

    slug, title, status = "forbidden", "Forbidden", 403


class QuotaExceeded(Problem):
    """The key or a run has reached its limit of runs or bytes; delete runs, or ask the operator for more."""

    slug, title, status = "quota-exceeded", "Quota exceeded", 403


class NotFound(Problem):
    """The service has no such route."""

    slug, title, status = "not-found", "Not found", 404


class UnknownLoss(NotFound):
    """No loss has that name; the detail lists the closest ones, ``GET /v1/losses`` lists all."""

    slug, title = "unknown-loss", "Unknown loss"


class UnknownMetric(NotFound):
    """No metric of the task has that name; the detail lists the closest ones."""

    slug, title = "unknown-metric", "Unknown metric"


class UnknownRun(NotFound):
    """No run has that name. The runs of other keys are not found either, unless they are public."""

    slug, title = "unknown-run", "Unknown run"


class UnknownBatch(NotFound):
    """The run has counted no batch of that name."""

    slug, title = "unknown-batch", "Unknown batch"


class MethodNotAllowed(Problem):
    """The path exists, but does not accept this HTTP method.

    Args:
        detail: As for every problem.
        allow: The methods that the path accepts, as in ``Allow``; empty if they are unknown.
        keywords: As for every problem.
    """

    slug, title, status = "method-not-allowed", "Method not allowed", 405

    def __init__(self, detail: str, *, allow: str = "", **keywords: Any) -> None:
        super().__init__(detail, **keywords)
        self.allow = allow


class RequestTimeout(Problem):
    """The request arrived too slowly: its head was not complete, or its body paused; send it again."""

    slug, title, status = "request-timeout", "Request timeout", 408


class Conflict(Problem):
    """The state of a run forbids the request. Nothing was changed."""

    slug, title, status = "conflict", "Conflict", 409


class RunDiffers(Conflict):
    """A run of that name exists with another definition; ``fields`` lists the differences.

    Attributes:
        fields: Pointers to the fields of the definition that differ.
    """

    slug, title = "run-differs", "Run differs"
    members = ("fields",)

    def __init__(self, detail: str, *, fields: Sequence[str] = (), **keywords: Any) -> None:
        super().__init__(detail, **keywords)
        self.fields = list(fields)


class BatchConflict(Conflict):
    """A batch of that name was counted with other data; the detail has both digests."""

    slug, title = "batch-conflict", "Batch conflict"


class DuplicateRows(Conflict):
    """Rows were counted before, or are in a batch twice; ``rows`` lists the first of them.

    Attributes:
        rows: The first of them: positions, ids, or names of batches.
        count: The number of these rows.
        batches: The names of the batches that counted them, as far as they are known.
    """

    slug, title = "duplicate-rows", "Duplicate rows"
    members = ("rows", "count", "batches")

    def __init__(
        self,
        detail: str,
        *,
        rows: Sequence[int] | Sequence[str] = (),
        count: int = 0,
        batches: Sequence[str] = (),
        **keywords: Any,
    ) -> None:
        super().__init__(detail, **keywords)
        self.rows: list[Any] = list(rows)
        self.count = count
        self.batches = list(batches)


class RunSealed(Conflict):
    """The run is sealed: its result is final, and it counts no more rows."""

    slug, title = "run-sealed", "Run sealed"


class Incomplete(Conflict):
    """Rows of the data set were not counted, so the run stays open; ``missing`` lists the first ranges.

    Attributes:
        expected: The number of rows of the data set.
        counted: The number of counted rows.
        missing: The first ranges of missing rows, as [first, last + 1]; empty if batches identify the rows.
    """

    slug, title = "incomplete", "Incomplete"
    members = ("expected", "counted", "missing")

    def __init__(
        self, detail: str, *, expected: int = 0, counted: int = 0, missing: Sequence[Any] = (), **keywords: Any
    ) -> None:
        super().__init__(detail, **keywords)
        self.expected = expected
        self.counted = counted
        self.missing = list(missing)


class OtherTargets(Conflict):
    """The fingerprint of the counted targets differs from that of the definition, so the run stays open."""

    slug, title = "other-targets", "Other targets"


class DefinitionChanged(Conflict):
    """The definition of a metric has changed since the run began, so it counts no more rows; start another run."""

    slug, title = "definition-changed", "Definition changed"


class NotComparable(Conflict):
    """The runs differ in definition, rows or targets; ``differs`` lists the differences.

    Attributes:
        differs: The differences from the baseline: pointers to fields of the definition, ``versions``, ``rows``,
            ``targets``, ``pairing``.
        runs: Each run that the baseline cannot be compared with: ``run``, ``owner``, ``differs``, ``detail``.
    """

    slug, title = "not-comparable", "Not comparable"
    members = ("differs", "runs")

    def __init__(
        self, detail: str, *, differs: Sequence[str] = (), runs: Sequence[Mapping[str, Any]] = (), **keywords: Any
    ) -> None:
        super().__init__(detail, **keywords)
        self.differs = list(differs)
        self.runs = [dict(run) for run in runs]


class TooLarge(Problem):
    """A size exceeds a limit of the service, or the memory of its device; the detail says which."""

    slug, title, status = "too-large", "Too large", 413


class UriTooLong(TooLarge):
    """The request's URI is longer than the limit of a head; move parameters into the body."""

    slug, title, status = "uri-too-long", "URI too long", 414


class HeadTooLarge(TooLarge):
    """The request's head, or the trailers after its body, have more bytes or fields than the limit."""

    slug, title, status = "head-too-large", "Head too large", 431


class UnsupportedMediaType(Problem):
    """lossd does not read the Content-Type or the Content-Encoding."""

    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class NotEvaluable(Problem):
    """The request is well-formed, but cannot be computed."""

    slug, title, status = "not-evaluable", "Not evaluable", 422


class InvalidRequest(NotEvaluable):
    """A field is unknown or mistyped, or a parameter is outside its range; ``errors`` points at each one."""

    slug, title = "invalid-request", "Invalid request"


class MissingInput(NotEvaluable):
    """The request lacks a tensor that the loss needs."""

    slug, title = "missing-input", "Missing input"


class UnknownInput(NotEvaluable):
    """The request has a tensor that the loss does not take."""

    slug, title = "unknown-input", "Unknown input"


class ShapeMismatch(NotEvaluable):
    """A tensor's shape does not fit the loss or the other tensors; lossd never broadcasts."""

    slug, title = "shape-mismatch", "Shape mismatch"


class DtypeMismatch(NotEvaluable):
    """A tensor's dtype is of the wrong kind, for example floats instead of class indices."""

    slug, title = "dtype-mismatch", "Dtype mismatch"


class InvalidValue(NotEvaluable):
    """A tensor has an entry outside its domain: a class out of range, a probability over 1, a NaN target."""

    slug, title = "invalid-value", "Invalid value"


class QueueFull(Problem):
    """The service's queue is full; retry after the time in Retry-After."""

    slug, title, status = "queue-full", "Queue full", 429


class InternalError(Problem):
    """The service has a fault; search its log for the request id."""

    slug, title, status = "internal-error", "Internal error", 500


class Unavailable(Problem):
    """The service cannot accept the request now: it is shutting down, or has no worker or memory; retry later."""

    slug, title, status = "unavailable", "Unavailable", 503


class DeadlineExceeded(Problem):
    """The request's deadline passed before its evaluation; nothing was computed."""

    slug, title, status = "deadline-exceeded", "Deadline exceeded", 504


class StorageFull(Problem):
    """The disk or the database of the runs is full; the counted rows are safe."""

    slug, title, status = "storage-full", "Storage full", 507


def _tree(root: type[Problem]) -> list[type[Problem]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


PROBLEMS: dict[str, type[Problem]] = {kind.slug: kind for kind in _tree(Problem)[1:]}
"""The problem classes by the last part of their type URI, in the order of the tree."""
