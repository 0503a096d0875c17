"""A service that keeps runs in memory, for tests of the client: names, digests, pages and seals, but no metrics."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from client.fake import FakeService, Reply, Request, problem
from lossd_client.wire import safetensors

RESULT = {
    "digest": "s1:ab",
    "loss": 0.5,
    "metrics": {"task": "binary", "accuracy": 0.5, "f1": {"macro": 0.25, "per_class": [0.25]}, "log_loss": "Infinity"},
    "bounds": {},
    "targets": "t1:cd",
    "warnings": [],
}


class FakeRuns:
    """Answers the requests about runs.

    Attributes:
        runs: What is known of each run.
        counted: The rows of each counted batch, by run and batch, in the order of counting.
        sent: The names of all batches that were sent, counted before or not.
        refuse: Returns the reply that refuses a batch, or None.
    """

    def __init__(self, service: FakeService, *, page: int = 3) -> None:
        service.default = self.answer
        self.runs: dict[str, dict[str, Any]] = {}
        self.counted: dict[str, dict[str, dict[str, Any]]] = {}
        self.sent: list[str] = []
        self.refuse: Callable[[str, Request], Reply | None] = lambda name, request: None
        self._page = page
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Reply:
        address = urlsplit(request.path)
        query = dict(parse_qsl(address.query))
        path = address.path.removeprefix("/v1/runs").strip("/").split("/")
        if path == [""]:
            return reply(self._list([self._entry(name) for name in self.runs], "runs", query))
        run = path[0]
        if request.method == "PUT" and len(path) == 1:
            return self._create(run, json.loads(request.body))
        if run not in self.runs:
            return problem(404, "unknown-run", f"no run is named {run}")
        if request.method == "PUT":
            return self._count(run, path[2], request)
        if request.method == "DELETE":
            del self.runs[run]
            return Reply(204)
        if path[1:] == ["batches"]:
            return reply(self._list(list(self.counted[run].values()), "batches", query))
        if path[1:] == ["seal"]:
            rows = json.loads(request.body).get("rows")
            if rows not in (None, self._rows(run)):
                return problem(409, "incomplete", f"{rows} rows are expected")
            self.runs[run]["status"] = "sealed"
        return reply(self._document(run))

    def _create(self, run: str, definition: dict[str, Any]) -> Reply:
        with self._lock:
            if run in self.runs and self.runs[run]["definition"] != definition:
                return problem(409, "run-differs", "another definition")
            created = run not in self.runs
            self.runs.setdefault(run, {"definition": definition, "status": "open"})
            self.counted.setdefault(run, {})
        return reply(self._entry(run), 201 if created else 200)

    def _count(self, run: str, name: str, request: Request) -> Reply:
        with self._lock:
            self.sent.append(name)
            if (refused := self.refuse(name, request)) is not None:
                return refused
            tensors, metadata = safetensors.decode(request.body)
            digest = hashlib.sha256(request.body).hexdigest()
            found = self.counted[run].get(name)
            if found is not None and found["digest"] != digest:
                return problem(409, "batch-conflict", f"{name} was counted with other data")
            rows = next(iter(tensors.values())).shape[0]
            ids = tensors.get("sample_id")
            first = json.loads(metadata["request"]).get("first") if ids is None else int(ids.numpy()[0])
            answer = {"batch": name, "counted": {"rows": rows}}
            self.counted[run].setdefault(name, {**answer, "first": first, "digest": digest})
            counted = {"rows": self._rows(run), "batches": len(self.counted[run])}
            return reply({**answer, "run": counted}, 201 if found is None else 200)

    def _rows(self, run: str) -> int:
        return sum(batch["counted"]["rows"] for batch in self.counted[run].values())

    def _entry(self, run: str) -> dict[str, Any]:
        known = self.runs[run]
        counted = {"rows": self._rows(run), "batches": len(self.counted[run])}
        return {"run": run, "owner": "", "status": known["status"], **known["definition"], "counted": counted}

    def _document(self, run: str) -> dict[str, Any]:
        entry = self._entry(run)
        result = {"provisional": entry["status"] == "open", **RESULT} if self.counted[run] else None
        return {**entry, "signature": "lossd 1|binary", "missing": [[1, 2]], "result": result}

    def _list(self, entries: list[Any], field: str, query: Mapping[str, str]) -> dict[str, Any]:
        """A page, smaller than any that a client asks for."""
        begin = int(query.get("after", 0))
        end = begin + min(self._page, int(query["limit"]))
        return {field: entries[begin:end], "next": str(end) if end < len(entries) else None}


def reply(document: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(document).encode())
