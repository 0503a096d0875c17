"""What addresses say: names of runs and batches, and query parameters."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field

from lossd.request.options import validated
from lossd_client.errors import InvalidRequest, NotFound
from lossd_client.wire.quoting import quoted

__all__ = [
    "RUNS",
    "BatchesQuery",
    "NoQuery",
    "OwnerQuery",
    "RunQuery",
    "RunsQuery",
    "checked_name",
    "query",
    "segments",
]

RUNS = "/v1/runs"

NAME = re.compile(r"[A-Za-z0-9._~-]{1,200}")
DOTS = (".", "..")  # clients remove them from an address

MAX_FIELDS = 32
MAX_PAGE = 1000

Text = Annotated[str, Field(min_length=1, max_length=1024)]
Page = Annotated[int, Field(ge=1, le=MAX_PAGE, description="The most entries of the answer.")]
After = Annotated[str, Field(min_length=1, max_length=4096, description="Where to go on: `next` of the answer before.")]
Owner = Annotated[
    str, Field(max_length=1024, description="The API key whose public run it is; by default your own run comes first.")
]


class NoQuery(BaseModel):
    """The query parameters of a path that takes none."""

    model_config = ConfigDict(extra="forbid")


class OwnerQuery(NoQuery):
    """The query parameters of a batch."""

    owner: Owner | None = None


class RunQuery(OwnerQuery):
    """The query parameters of a run."""

    metrics: Text | None = Field(None, description="Only these metrics, separated by commas.")


class BatchesQuery(OwnerQuery):
    """The query parameters of a run's batches."""

    after: After | None = None
    limit: Page = 100


class RunsQuery(NoQuery):
    """The query parameters of the list of runs."""

    dataset: Text | None = Field(None, description="Only runs on this data set: its name, or name@version.")
    task: Text | None = Field(None, description="Only runs of this task.")
    status: Literal["open", "sealed"] | None = Field(None, description="Only runs of this status.")
    tag: Text | None = Field(None, description="Only runs with this tag: its name and its value, as commit:4f1c.")
    sort: Text | None = Field(None, description="A metric, or created, touched, name; -f1.macro for descending order.")
    after: After | None = None
    limit: Page = 100


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
            if name in fields:
                raise InvalidRequest(f"the query has {quoted(name)} twice")
            fields[name] = value
    return validated(model, fields, "")


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
