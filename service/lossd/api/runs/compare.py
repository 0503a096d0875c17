"""``GET /v1/compare``: whether runs differ by more than chance, from their stored states."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Send

from lossd import __version__
from lossd.api.http.asgi import not_allowed
from lossd.api.http.request import HttpRequest
from lossd.api.runs.comparisons import ComparisonCache
from lossd.api.runs.documents import etag, signature
from lossd.api.runs.names import CompareQuery, checked_name, query
from lossd.api.runs.recorded import Record, RecordedRoute
from lossd.runs.statistics.sentence import sentence
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire import json
from lossd_client.wire.quoting import quoted

if TYPE_CHECKING:
    from lossd.api.http.fairness import FairShare
    from lossd.api.observability.telemetry import Telemetry
    from lossd.configuration.settings import Settings
    from lossd.engine import Engine
    from lossd.recorder.client import Recorder

__all__ = ["Compare"]


class Compare(RecordedRoute):
    """The route that compares runs.

    Args:
        settings: The limits.
        engine: Compares states.
        telemetry: Measures the recorder.
        fair_share: As for every route.
        recorder: Keeps the runs.
    """

    def __init__(
        self, settings: Settings, engine: Engine, telemetry: Telemetry, fair_share: FairShare, recorder: Recorder
    ) -> None:
        super().__init__(settings, engine, telemetry, fair_share, recorder)
        self.comparisons = ComparisonCache(recorder, engine, telemetry)

    async def _serve(self, request: HttpRequest, send: Send) -> None:
        if request.scope["method"] not in ("GET", "HEAD"):
            raise not_allowed(request.scope["method"], ["GET"])
        request.read_headers()
        parameters = query(request.query, CompareQuery)
        names = [checked_name(name, "run") for name in parameters.run]
        records = [await self._found(request, *named) for named in zip(names, parameters.owners, strict=True)]
        _check_different(records)
        if await self._unchanged(request, send, _tag(records, parameters)):
            return
        records, pairs = await self.comparisons.of_runs(request, records, _options(parameters), self._result)
        document = _document(records, pairs)
        await self._send(request, send, document, [(b"etag", _tag(records, parameters).encode())])


def _options(parameters: CompareQuery) -> dict[str, Any]:
    """Return the options of the comparison that are no defaults."""
    options = parameters.model_dump(exclude={"run", "owner", "metrics"}, exclude_defaults=True)
    return options if parameters.names is None else {**options, "metrics": parameters.names}


def _check_different(records: list[Record]) -> None:
    """Check that no run is named twice.

    Raises:
        InvalidRequest: One is.
    """
    known = set[str]()
    for position, record in enumerate(records):
        if record["id"] in known:
            detail = f"the run {quoted(record['name'])} is named twice; compare it with other runs"
            raise InvalidRequest(detail, errors=[Fault(pointer=f"/run/{position}", detail=detail)])
        known.add(record["id"])


def _tag(records: list[Record], parameters: CompareQuery) -> str:
    """Return the entity tag of a comparison: it changes with each of the runs."""
    parts = [[etag(record) for record in records], _options(parameters), __version__]
    return f'W/"{hashlib.blake2b(json.dumps(parts), digest_size=12).hexdigest()}"'


def _document(records: list[Record], pairs: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the answer: of each run its values, and of each but the first its comparison with the first.

    Args:
        records: The runs' records.
        pairs: The comparison of each run but the first with the first.
    """
    first, *others = records
    values = [pairs[0]["runs"][0], *(pair["runs"][1] for pair in pairs)]
    comparisons = []
    for record, pair in zip(others, pairs, strict=True):
        [found] = pair["comparisons"]
        text = sentence(
            record["name"],
            first["name"],
            found["metrics"],
            level=pair["level"],
            provisional=[each["name"] for each in (first, record) if each["status"] == "open"],
        )
        comparisons.append({"run": record["name"], "owner": record["owner"], "sentence": text, **found})
    return {
        **pairs[0],
        "groups": min(pair["groups"] for pair in pairs),
        "runs": [_run(record, found) for record, found in zip(records, values, strict=True)],
        "comparisons": comparisons,
    }


def _run(record: Record, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a comparison says of a run."""
    final = record.get("result") or {}
    return {
        "run": record["name"],
        "owner": record["owner"],
        "status": record["status"],
        "provisional": record["status"] == "open",
        "signature": final.get("signature") or signature(record, values),
        **values,
    }
