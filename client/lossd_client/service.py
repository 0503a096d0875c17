"""Every question to a service, as a conversation that the sync or the async client runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from lossd_client.arrays import is_tensor
from lossd_client.errors import ConnectionFailed, LossdError, Unavailable, UnreadableAnswer
from lossd_client.exchange import Body, Call, HttpResponse, Send, Wait, attempt, exchange
from lossd_client.messages import Evaluation, Record, compose, read_evaluation
from lossd_client.wire import json, safetensors
from lossd_client.wire.quoting import digits

__all__ = ["Conversation", "Service", "check_api_key", "check_url"]

T = TypeVar("T")
Conversation = Generator[Send | Wait, HttpResponse | None, T]

FIRST_POLL_S = 0.05
LONGEST_POLL_S = 1.0


def check_url(url: str) -> None:
    """Check an address of a service.

    Raises:
        ValueError: The URL is no HTTP address.
    """
    if not url.lower().startswith(("http://", "https://")):
        remedy = f", as in http://{url}" if "://" not in url else ""
        raise ValueError(f"{url!r} is no address; it must start with http:// or https://{remedy}")
    try:
        host, port = httpx.URL(url).host, httpx.URL(url).port
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"{url!r} is no address: {error}") from None
    if not host or any(map(str.isspace, url)) or not 0 < (port or 80) < 65536:
        raise ValueError(f"{url!r} is no address; it must be http://host:port, with a port from 1 to 65535")


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
        url: The service's address.
        api_key: The caller's key, or None.
        timeout_s: Seconds a call may take.
        retries: How often a call is retried.
        headers: Headers of every call; the client's own headers take precedence.

    Raises:
        ValueError: The address or the key is invalid.
    """

    def __init__(
        self, url: str, api_key: str | None, timeout_s: float, retries: int, headers: Mapping[str, str]
    ) -> None:
        check_url(url)
        check_api_key(api_key)
        self.url = url.rstrip("/")
        caller_headers = {name.lower(): value for name, value in headers.items()}
        self.headers = {**caller_headers, "user-agent": "lossd-client", "accept-encoding": "identity"}
        if api_key is not None:
            self.headers["authorization"] = f"Bearer {api_key}"
        self.timeout_s = timeout_s
        self.retries = retries

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
            yield from attempt(call, call.timeout_s)
        except (ConnectionFailed, Unavailable):
            return False
        return True

    def wait_until_ready(self, timeout_s: float) -> Conversation[None]:
        """Return the conversation that repeats ``GET /health/ready`` until the service is ready."""
        call = self._call("GET", "/health/ready", json.MEDIA_TYPE)
        deadline = time.monotonic() + timeout_s
        pause_s = FIRST_POLL_S
        while True:
            try:
                yield from attempt(call, min(call.timeout_s, deadline - time.monotonic()))
            except (ConnectionFailed, Unavailable) as failure:
                if time.monotonic() + pause_s >= deadline:
                    failure.add_note(f"{self.url} was not ready within {digits(timeout_s)} s")
                    raise
            else:
                return
            yield Wait(pause_s)
            pause_s = min(LONGEST_POLL_S, 2 * pause_s)

    def _get(self, path: str) -> Conversation[Record]:
        call = self._call("GET", path, json.MEDIA_TYPE)
        response = yield from exchange(call)
        try:
            document = json.loads(response.body, what="the answer")
        except LossdError as error:
            raise UnreadableAnswer(f"{call.url}: {error}; is it lossd?", request_id=call.request_id) from error
        if not isinstance(document, dict):
            raise UnreadableAnswer(f"{call.url}: the answer is no object; is it lossd?", request_id=call.request_id)
        return Record(document)

    def _call(
        self,
        method: str,
        path: str,
        media_type: str,
        body: Body | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> Call:
        request_id = request_id or os.urandom(16).hex()
        headers = {**self.headers, "accept": media_type, "x-request-id": request_id}
        if body is not None:
            headers["content-type"] = media_type
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        return Call(method, self.url + path, headers, timeout_s, self.retries, request_id, body)
