"""Every question to a service, as a conversation that the sync or the async client runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from lossd_client.addresses import Addresses
from lossd_client.arrays import is_tensor
from lossd_client.calls import Body, Call, Conversation, Wait
from lossd_client.comparisons import Comparisons
from lossd_client.errors import InvalidRequest, LossdError, UnreadableAnswer
from lossd_client.exchange import ask_each, exchange, may_pass
from lossd_client.messages import Evaluation, Record, compose, read_document, read_evaluation
from lossd_client.wire import json, safetensors
from lossd_client.wire.quoting import digits, quoted

__all__ = ["Conversation", "Service", "check_api_key"]

NAME = re.compile(r"[A-Za-z0-9._~-]{1,200}")
"""The names of runs and of batches."""

RUN_FIELDS = {"run": str, "status": str, "identity": str, "counted": dict}
BATCH_FIELDS = {"batch": str, "counted": dict}
COMPARE_FIELDS = {"runs": list, "comparisons": list, "level": float, "paired": bool}
"""What the client reads of every answer about a run, a batch or a comparison."""

PAGE = 1000
"""The most entries of a list that one request asks for."""

FIRST_POLL_S = 0.05
LONGEST_POLL_S = 1.0


def check_api_key(key: str | None) -> None:
    """Check an API key.

    Raises:
        ValueError: A header cannot hold the key. The message does not repeat it.
    """
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ValueError("an API key has one or more visible ASCII characters; lossd key NAME makes a good one")


class Service:
    """A service and its conversations.

    Args:
        addresses: The service's addresses.
        api_key: The caller's key, or None.
        timeout_s: Seconds a call may take.
        retries: How often a call is retried.
        stall_s: Seconds without a byte after which the service must show that it lives.
        headers: Headers of every call; the client's own headers take precedence.

    Raises:
        ValueError: The key or the limit of a stall is invalid.
    """

    def __init__(
        self,
        addresses: Addresses,
        api_key: str | None,
        timeout_s: float,
        retries: int,
        stall_s: float,
        headers: Mapping[str, str],
    ) -> None:
        check_api_key(api_key)
        if not stall_s > 0:
            raise ValueError(f"stall_s is {stall_s}; it is a number of seconds over 0, and math.inf turns it off")
        self.addresses = addresses
        self.url = addresses.text
        caller_headers = {name.lower(): value for name, value in headers.items()}
        self.headers = {**caller_headers, "user-agent": "lossd-client", "accept-encoding": "identity"}
        if api_key is not None:
            self.headers["authorization"] = f"Bearer {api_key}"
        self.timeout_s = timeout_s
        self.retries = retries
        self.stall_s = stall_s

    def evaluate(
        self, *arguments: Any, timeout_s: float | None, request_id: str | None, **options: Any
    ) -> Conversation[Evaluation]:
        """Return the conversation of ``POST /v1/evaluate``; for arguments see :func:`lossd_client.messages.compose`."""
        composed = compose(*arguments, **options)
        call = self._call("POST", "/v1/evaluate", safetensors.MEDIA_TYPE, composed.body, timeout_s, request_id)
        return read_evaluation((yield from exchange(call)), composed.origins)

    def metrics(
        self,
        task: str,
        prediction: Any,
        target: Any,
        inputs: Mapping[str, Any] | None,
        *,
        timeout_s: float | None,
        request_id: str | None,
        keywords: Mapping[str, Any],
    ) -> Conversation[Record]:
        """Return the conversation of ``POST /v1/evaluate`` without a loss.

        Keywords that are no tensors are options of the metrics.
        """
        tensors = {name: value for name, value in keywords.items() if is_tensor(value)}
        options = {name: value for name, value in keywords.items() if name not in tensors}
        evaluation = yield from self.evaluate(
            None,
            prediction,
            target,
            task=task,
            inputs=inputs,
            metrics=options or None,
            timeout_s=timeout_s,
            request_id=request_id,
            keywords=tensors,
        )
        return evaluation.metrics

    def losses(self) -> Conversation[list[Record]]:
        """Return the conversation of ``GET /v1/losses``."""
        losses: list[Record] = (yield from self._get("/v1/losses")).losses
        return losses

    def loss(self, name: str) -> Conversation[Record]:
        """Return the conversation of ``GET /v1/losses/{name}``."""
        return self._get(f"/v1/losses/{quote(name, safe='')}")

    def health(self) -> Conversation[Record]:
        """Return the conversation of ``GET /health/live``."""
        return self._get("/health/live")

    def ready(self) -> Conversation[bool]:
        """Return the conversation of one ``GET /health/ready``."""
        call = self._call("GET", "/health/ready", json.MEDIA_TYPE)
        try:
            yield from ask_each(call, call.timeout_s)
        except LossdError as failure:
            if may_pass(failure):
                return False
            raise
        return True

    def wait_until_ready(self, timeout_s: float) -> Conversation[None]:
        """Return the conversation that repeats ``GET /health/ready`` until the service is ready."""
        call = self._call("GET", "/health/ready", json.MEDIA_TYPE)
        deadline = time.monotonic() + timeout_s
        pause_s = FIRST_POLL_S
        while True:
            try:
                yield from ask_each(call, deadline - time.monotonic())
            except LossdError as failure:
                if not may_pass(failure):
                    raise
                if time.monotonic() + pause_s >= deadline:
                    failure.add_note(f"{self.url} was not ready within {digits(timeout_s)} s")
                    raise
            else:
                return
            yield Wait(pause_s)
            pause_s = min(LONGEST_POLL_S, 2 * pause_s)

    def put_run(self, run: str, document: Mapping[str, Any]) -> Conversation[Record]:
        """Return the conversation of ``PUT /v1/runs/{run}``."""
        body = Body([json.dumps(json.finite(dict(document)))])
        return self._ask(self._call("PUT", _run_path(run), json.MEDIA_TYPE, body), RUN_FIELDS)

    def run(self, run: str, **query: str | None) -> Conversation[Record]:
        """Return the conversation of ``GET /v1/runs/{run}``."""
        return self._get(_run_path(run), query, RUN_FIELDS)

    def runs(self, limit: int | None, **query: str | None) -> Conversation[list[Record]]:
        """Return the conversation of ``GET /v1/runs``, page by page; ``limit`` is the most runs to return."""
        return self._pages("/v1/runs", "runs", query, limit)

    def compare(
        self,
        runs: Sequence[str],
        owner: str | Sequence[str | None] | None,
        metrics: Sequence[str] | str | None,
        level: float | None,
        **flags: bool,
    ) -> Conversation[Comparisons]:
        """Return the conversation of ``GET /v1/compare``; the first run is the baseline."""
        owners = [owner] if isinstance(owner, str) else [each or "" for each in owner or ()]
        names = metrics if metrics is None or isinstance(metrics, str) else ",".join(metrics)
        query = [*(("run", _named("run", run)) for run in runs), *(("owner", each) for each in owners)]
        confidence = None if level is None else repr(level)
        query += [(name, value) for name, value in (("metrics", names), ("level", confidence)) if value is not None]
        query += [(name, "true") for name, value in flags.items() if value]
        call = self._call("GET", f"/v1/compare?{urlencode(query)}", json.MEDIA_TYPE)
        return Comparisons.of((yield from self._ask(call, COMPARE_FIELDS)))

    def put_batch(self, run: str, batch: str, body: Body, timeout_s: float | None) -> Conversation[Record]:
        """Return the conversation of ``PUT /v1/runs/{run}/batches/{batch}``."""
        path = f"{_run_path(run)}/batches/{_named('batch', batch)}"
        call = self._call("PUT", path, json.MEDIA_TYPE, body, timeout_s, content_type=safetensors.MEDIA_TYPE)
        return self._ask(call, BATCH_FIELDS)

    def batches(self, run: str, **query: str | None) -> Conversation[list[Record]]:
        """Return the conversation of ``GET /v1/runs/{run}/batches``, page by page."""
        return self._pages(f"{_run_path(run)}/batches", "batches", query, None)

    def seal(self, run: str, rows: int | None) -> Conversation[Record]:
        """Return the conversation of ``POST /v1/runs/{run}/seal``."""
        body = Body([json.dumps({} if rows is None else {"rows": rows})])
        return self._ask(self._call("POST", f"{_run_path(run)}/seal", json.MEDIA_TYPE, body), RUN_FIELDS)

    def delete_run(self, run: str) -> Conversation[None]:
        """Return the conversation of ``DELETE /v1/runs/{run}``."""
        yield from exchange(self._call("DELETE", _run_path(run), json.MEDIA_TYPE))

    def _pages(
        self, path: str, field: str, query: Mapping[str, str | None], limit: int | None
    ) -> Conversation[list[Record]]:
        """Return the conversation that asks for page after page until there is no further one."""
        found: list[Record] = []
        after: str | None = None
        while limit is None or len(found) < limit:
            page = yield from self._get(path, {**query, "after": after, "limit": str(PAGE)}, {field: list})
            found += page[field]
            if not page[field] or page.get("next") is None:
                break
            after = str(page.next)
        return found[:limit]

    def _get(
        self,
        path: str,
        query: Mapping[str, str | None] | None = None,
        fields: Mapping[str, type] | None = None,
    ) -> Conversation[Record]:
        parameters = {name: value for name, value in (query or {}).items() if value is not None}
        return self._ask(
            self._call("GET", f"{path}?{urlencode(parameters)}" if parameters else path, json.MEDIA_TYPE), fields
        )

    def _ask(self, call: Call, fields: Mapping[str, type] | None = None) -> Conversation[Record]:
        """Return the conversation of a call whose answer is a JSON object that has these fields, of these types."""
        response = yield from exchange(call)
        document = read_document(response, call.url, call.request_id)
        for name, kind in (fields or {}).items():
            if not isinstance(document.get(name), kind):
                raise UnreadableAnswer(
                    f"{call.url}: the answer has no {name}; is it lossd?", request_id=call.request_id
                )
        return document

    def _call(
        self,
        method: str,
        path: str,
        media_type: str,
        body: Body | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        *,
        content_type: str | None = None,
    ) -> Call:
        """Return a call.

        Args:
            method: The method.
            path: The path and the query.
            media_type: The answer's media type, and the body's if ``content_type`` is None.
            body: The body.
            timeout_s: Seconds until the call fails; None for the client's.
            request_id: The request's id; None for a random one.
            content_type: The body's media type.
        """
        request_id = request_id or os.urandom(16).hex()
        headers = {**self.headers, "accept": media_type, "x-request-id": request_id}
        if body is not None:
            headers["content-type"] = content_type or media_type
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return Call(method, path, headers, timeout_s, self.retries, request_id, self.addresses, body, self.stall_s)


def _run_path(run: str) -> str:
    return f"/v1/runs/{_named('run', run)}"


def _named(what: str, name: str) -> str:
    """Return the name of a run or of a batch, which stands in a path.

    Raises:
        InvalidRequest: It is no name.
    """
    if not NAME.fullmatch(name) or name in (".", ".."):  # a path loses these two on its way
        raise InvalidRequest(
            f"{quoted(name)} is not the name of a {what}; use 1 to 200 letters, digits and . _ ~ -, but not . or .."
        )
    return name
