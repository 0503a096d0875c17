"""What addresses say: names of runs and batches, and query parameters."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, get_origin
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field

from lossd.request.fields import validated
from lossd_client.errors import Fault, InvalidRequest, NotFound
from lossd_client.wire.quoting import quoted

__all__ = [
    "COMPARE",
    "RUNS",
    "BatchesQuery",
    "CompareQuery",
    "NoQuery",
    "OwnerQuery",
    "RunQuery",
    "RunsQuery",
    "checked_name",
    "names_in",
    "query",
    "segments",
]

RUNS = "/v1/runs"
COMPARE = "/v1/compare"

NAME = re.compile(r"[A-Za-z0-9._~-]{1,200}")
DOTS = (".", "..")  # clients remove them from an address

MAX_COMPARED = 32
MAX_FIELDS = 2 * MAX_COMPARED + 16
MAX_PAGE = 1000

Text = Annotated[str, Field(min_length=1, max_length=1024)]
PageLimit = Annotated[int, Field(ge=1, le=MAX_PAGE, description="The maximum number of entries in the answer.")]
After = Annotated[str, Field(min_length=1, max_length=4096, description="The value of `next` in the previous answer.")]
Owner = Annotated[
    str,
    Field(
        max_length=1024,
        description="The name of the API key that owns the public run. Without it, your own run comes first.",
    ),
]


Level = Annotated[float, Field(gt=0.5, le=0.9999)]
"""The confidence of intervals."""


class NoQuery(BaseModel):
    """The query parameters of a path that takes none."""

    model_config = ConfigDict(extra="forbid")


class OwnerQuery(NoQuery):
    """The query parameters of a batch."""

    owner: Owner | None = None


class RunQuery(OwnerQuery):
    """The query parameters of a run."""

    metrics: Text | None = Field(
        None,
        description="Only these metrics, separated by commas. A metric that the definition does not name is answered "
        "too if it can be computed from what the run has counted.",
    )
    level: Level | None = Field(None, description="The confidence of the intervals; 0.95 by default.")
    slices: bool = Field(True, description="Whether the answer contains the slices.")

    @property
    def names(self) -> list[str] | None:
        """The names of the metrics, each once; None for all."""
        return names_in(self.metrics)


class CompareQuery(NoQuery):
    """The query parameters of a comparison."""

    run: list[Text] = Field(
        min_length=2,
        max_length=MAX_COMPARED,
        description="The runs, as run=a&run=b. The first is the baseline.",
    )
    owner: list[Owner] = Field(
        [],
        max_length=MAX_COMPARED,
        description="The name of the API key that owns the public runs: once for all runs, or once for each run in "
        "their order, empty for your own. Without it, your own runs come first.",
    )
    metrics: Text | None = Field(None, description="Only these metrics, separated by commas.")
    classes: bool = Field(False, description="Whether the metrics of single classes are compared too.")
    slices: bool = Field(False, description="Whether the runs are compared on each slice too.")
    level: Level | None = Field(None, description="The confidence of the intervals; 0.95 by default.")
    unpaired: bool = Field(
        False,
        description="Whether runs of different rows are compared too, as independent samples; this is less sensitive.",
    )

    @property
    def names(self) -> list[str] | None:
        """The names of the metrics, each once; None for all."""
        return names_in(self.metrics)

    @property
    def owners(self) -> list[str | None]:
        """The owner of each run, None for any.

        Raises:
            InvalidRequest: There are neither none, nor one, nor as many as runs.
        """
        if len(self.owner) not in (0, 1, len(self.run)):
            detail = (
                f"owner stands {len(self.owner)} times for {len(self.run)} runs; state it once for all runs, or once "
                "for each"
            )
            raise InvalidRequest(detail, errors=[Fault(pointer="/owner", detail=detail)])
        if len(self.owner) == 1:
            return [self.owner[0] for _ in self.run]
        return [owner or None for owner in self.owner] or [None] * len(self.run)


class BatchesQuery(OwnerQuery):
    """The query parameters of a run's batches."""

    after: After | None = None
    limit: PageLimit = 100


class RunsQuery(NoQuery):
    """The query parameters of the list of runs."""

    dataset: Text | None = Field(None, description="Only runs on this data set: its name, or name@version.")
    task: Text | None = Field(None, description="Only runs of this task.")
    status: Literal["open", "sealed"] | None = Field(None, description="Only runs of this status.")
    tag: Text | None = Field(None, description="Only runs with this tag, as name:value: for example commit:4f1c.")
    sort: Text | None = Field(
        None,
        description="The order: a metric, such as f1.macro; an end of its interval, such as f1.macro.low; or created, "
        "touched or name. A minus in front reverses it: -f1.macro.",
    )
    after: After | None = None
    limit: PageLimit = 100


Q = TypeVar("Q", bound=NoQuery)


def query(text: bytes, model: type[Q]) -> Q:
    """Return the query parameters of an address.

    Raises:
        InvalidRequest: A parameter is unknown, stated twice, or has an impossible value.
    """
    fields: dict[str, Any] = {}
    if text:
        try:
            pairs = parse_qsl(text.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise InvalidRequest(f"the query has more than {MAX_FIELDS} parameters") from None
        for name, value in pairs:
            if name in model.model_fields and get_origin(model.model_fields[name].annotation) is list:
                fields.setdefault(name, []).append(value)
                continue
            if name in fields:
                raise InvalidRequest(f"the query has {quoted(name)} twice")
            fields[name] = value
    return validated(model, fields, "")


def names_in(text: str | None) -> list[str] | None:
    """Return the names in a text that are separated by commas, each once; None for None."""
    return None if text is None else list(dict.fromkeys(name.strip() for name in text.split(",")))


def segments(path: str) -> list[str]:
    """Return the parts of a path after ``/v1/runs``.

    Raises:
        NotFound: The path is not below ``/v1/runs``.
    """
    rest = path.removeprefix(RUNS)
    if not rest:
        return []
    if not rest.startswith("/"):
        raise NotFound(f"nothing is served at {quoted(path)}; /openapi.json lists all paths")
    return rest[1:].split("/")


def checked_name(name: str, what: Literal["run", "batch"]) -> str:
    """Return a name from an address.

    Raises:
        InvalidRequest: A run or a batch cannot have the name.
    """
    if not NAME.fullmatch(name) or name in DOTS:
        raise InvalidRequest(
            f"no {what} can have the name {quoted(name)}: a name has 1 to 200 letters from A to Z, digits and . _ ~ -, "
            "and is neither . nor .."
        )
    return name
