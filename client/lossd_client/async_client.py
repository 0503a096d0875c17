"""``AsyncLossClient``: the methods of ``LossClient`` for asyncio, and their I/O."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload

import httpx

from lossd_client.addresses import Addresses, split_urls
from lossd_client.calls import Conversation, HttpResponse, ReceivedResponse, Resolve, Send, Wait
from lossd_client.client import (
    DEFAULT_RETRIES,
    DEFAULT_STALL_S,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    LIMITS,
    check_cacert,
    socket_of,
)
from lossd_client.comparisons import Comparison, Comparisons
from lossd_client.connections import (
    Interruptible,
    StallTimer,
    connects_by_name,
    find_records,
    trusted,
    wait_below,
)
from lossd_client.messages import Evaluation, Record
from lossd_client.runs import AsyncRemoteRun, open_run
from lossd_client.score import BatchInputs, Score, arguments, default_outputs, score_async
from lossd_client.service import Service

__all__ = ["AsyncLossClient"]

T = TypeVar("T")


class AsyncLossClient:
    """:class:`LossClient` for asyncio: the same methods as coroutines.

    Args:
        url: As for :class:`LossClient`, like the other arguments.
        api_key: Sent as ``Authorization: Bearer``.
        timeout_s: Seconds a call may take, retries included.
        retries: How often a call is retried.
        stall_s: Seconds without a byte after which the service must show that it lives.
        cacert: A PEM file with the certificates of a private authority.
        http: An ``httpx`` client to use instead of a new one.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        stall_s: float = DEFAULT_STALL_S,
        cacert: str | os.PathLike[str] | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        check_cacert(cacert, http)
        urls = split_urls(url)
        path = socket_of(urls, http)
        transport = None if path is None else httpx.AsyncHTTPTransport(uds=path, limits=LIMITS)
        self._owned = http is None
        verify = True if cacert is None else trusted(cacert)
        self._http = http or httpx.AsyncClient(limits=LIMITS, transport=transport, verify=verify)
        wait_below(self._http)
        addresses = Addresses(urls, resolve=all(connects_by_name(self._http, each) for each in urls))
        self._service = Service(addresses, api_key, timeout_s, retries, stall_s, self._http.headers)

    async def evaluate(
        self,
        loss: str | Mapping[str, Any] | None = None,
        prediction: Any = None,
        target: Any = None,
        /,
        *,
        task: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | str | None = None,
        gradient: Mapping[str, Any] | None = None,
        hessian: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **parameters_and_inputs: Any,
    ) -> Evaluation:
        """As :meth:`LossClient.evaluate`."""
        return await self._run(
            self._service.evaluate(
                loss,
                prediction,
                target,
                task=task,
                inputs=inputs,
                outputs=outputs,
                gradient=gradient,
                hessian=hessian,
                metrics=metrics,
                timeout_s=timeout_s,
                request_id=request_id,
                keywords=parameters_and_inputs,
            )
        )

    async def metrics(
        self,
        task: str,
        prediction: Any = None,
        target: Any = None,
        /,
        *,
        inputs: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **options_and_inputs: Any,
    ) -> Record:
        """As :meth:`LossClient.metrics`."""
        return await self._run(
            self._service.metrics(
                task,
                prediction,
                target,
                inputs,
                timeout_s=timeout_s,
                request_id=request_id,
                keywords=options_and_inputs,
            )
        )

    async def score(
        self,
        batches: Iterable[BatchInputs],
        loss: str | Mapping[str, Any] | None = None,
        /,
        *,
        outputs: Sequence[str] | str | None = None,
        in_flight: int = 8,
        progress: bool | None = None,
        **options: Any,
    ) -> Score:
        """As :meth:`LossClient.score`."""
        requested = default_outputs(loss) if outputs is None else outputs

        async def evaluate(batch: BatchInputs) -> Evaluation:
            positional, inputs = arguments(batch)
            return await self.evaluate(loss, *positional, inputs=inputs, outputs=requested, **options)

        return await score_async(evaluate, batches, in_flight=in_flight, progress=progress)

    async def run(
        self,
        name: str,
        *,
        task: str | None = None,
        loss: str | Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        dataset: str | Mapping[str, Any] | None = None,
        rows: int | None = None,
        targets: str | None = None,
        identity: Literal["position", "id", "batch"] = "position",
        scope: Literal["rows", "batch"] | None = None,
        limit: int | None = None,
        groups: Literal[0, 16, 32, 64] | None = None,
        slices: Mapping[str, Sequence[str]] | None = None,
        crossed: Sequence[Sequence[str]] | None = None,
        tags: Mapping[str, str] | None = None,
        public: bool | None = None,
        owner: str | None = None,
        **parameters: Any,
    ) -> AsyncRemoteRun:
        """As :meth:`LossClient.run`."""
        conversation = open_run(
            self._service,
            name,
            task=task,
            loss=loss,
            metrics=metrics,
            dataset=dataset,
            rows=rows,
            targets=targets,
            identity=identity,
            scope=scope,
            limit=limit,
            groups=groups,
            slices=slices,
            crossed=crossed,
            tags=tags,
            public=public,
            owner=owner,
            parameters=parameters,
        )
        return AsyncRemoteRun(self._run, self._service, await self._run(conversation), owner)

    async def runs(
        self,
        *,
        dataset: str | None = None,
        task: str | None = None,
        status: Literal["open", "sealed"] | None = None,
        tag: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:
        """As :meth:`LossClient.runs`."""
        return await self._run(self._service.runs(limit, dataset=dataset, task=task, status=status, tag=tag, sort=sort))

    @overload
    async def compare(
        self,
        baseline: str,
        run: str,
        *,
        owner: str | Sequence[str | None] | None = None,
        metrics: Sequence[str] | str | None = None,
        classes: bool = False,
        slices: bool = False,
        level: float | None = None,
        unpaired: bool = False,
    ) -> Comparison: ...

    @overload
    async def compare(
        self,
        baseline: str,
        run: str,
        other: str,
        /,
        *others: str,
        owner: str | Sequence[str | None] | None = None,
        metrics: Sequence[str] | str | None = None,
        classes: bool = False,
        slices: bool = False,
        level: float | None = None,
        unpaired: bool = False,
    ) -> Comparisons: ...

    async def compare(
        self,
        baseline: str,
        run: str,
        *others: str,
        owner: str | Sequence[str | None] | None = None,
        metrics: Sequence[str] | str | None = None,
        classes: bool = False,
        slices: bool = False,
        level: float | None = None,
        unpaired: bool = False,
    ) -> Comparison | Comparisons:
        """As :meth:`LossClient.compare`."""
        conversation = self._service.compare(
            [baseline, run, *others], owner, metrics, level, classes=classes, slices=slices, unpaired=unpaired
        )
        found = await self._run(conversation)
        return found if others else found.comparisons[0]

    async def losses(self) -> list[Record]:
        """As :meth:`LossClient.losses`."""
        return await self._run(self._service.losses())

    async def loss(self, name: str) -> Record:
        """As :meth:`LossClient.loss`."""
        return await self._run(self._service.loss(name))

    async def health(self) -> Record:
        """As :meth:`LossClient.health`."""
        return await self._run(self._service.health())

    async def ready(self) -> bool:
        """As :meth:`LossClient.ready`."""
        return await self._run(self._service.ready())

    async def wait_until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """As :meth:`LossClient.wait_until_ready`."""
        await self._run(self._service.wait_until_ready(timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, conversation: Conversation[T]) -> T:
        try:
            step = next(conversation)
            while True:
                try:
                    response = await self._perform(step)
                except httpx.RequestError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(response)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()  # an attempt that an exception ended is no longer in flight

    async def _perform(self, step: Send | Wait | Resolve) -> HttpResponse | list[str] | None:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Resolve):
            return await asyncio.to_thread(find_records, step.name)
        await asyncio.sleep(step.seconds)
        return None

    async def _send(self, step: Send) -> HttpResponse:
        request = step.request(self._http.cookies)
        timeout = request.extensions["timeout"]
        timeout["write"] = Interruptible(timeout["write"])
        if step.quiet_s >= step.timeout_s:
            return await self._receive(request, [])
        parts: list[ReceivedResponse] = []
        body = step.call.body

        def moved() -> int:
            return (body.sent if body else 0) + sum(part.nbytes for part in parts)

        async with StallTimer(step.quiet_s, moved, lambda: self._lives(step)):
            return await self._receive(request, parts)

    async def _receive(self, request: httpx.Request, parts: list[ReceivedResponse]) -> HttpResponse:
        response = await self._http.send(request, stream=True)
        try:
            received = ReceivedResponse(response)
            parts.append(received)
            async for chunk in response.aiter_bytes() if received.encoded else response.aiter_raw():
                received.add(chunk)
        finally:
            await response.aclose()
        return received.response()

    async def _lives(self, step: Send) -> bool:
        """Return whether the service that an attempt waits for answers on another connection."""
        try:
            await self._http.send(step.probe().request())
        except httpx.RequestError as error:
            return isinstance(error, httpx.PoolTimeout)  # no connection was free, which says nothing of the service
        return True
