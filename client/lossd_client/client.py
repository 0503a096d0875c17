"""The clients: the names to call, and the sockets.

What they say to the service is composed in :mod:`lossd_client.messages`; when they say it again is decided in
:mod:`lossd_client.exchange`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx

from lossd_client.exchange import Answer, Receipt, Send, Wait
from lossd_client.messages import Evaluation, Record
from lossd_client.score import Batch, Score, arguments, score, score_async, scored
from lossd_client.service import Conversation, Service

__all__ = ["AsyncLossClient", "LossClient"]

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RETRIES = 3
# Connections are kept for less long than the service keeps them, so that none is found closed.
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=30.0)


class LossClient:
    """A connection to a lossd service. Threads may share it.

    >>> with LossClient("http://localhost:8000") as lossd:  # doctest: +SKIP
    ...     result = lossd.evaluate("focal", prediction, target, gamma=2.0)
    ...     result.loss, result.gradient, result.metrics.f1.macro

    Args:
        url: Where the service is.
        api_key: Sent as ``Authorization: Bearer``, for a service that asks for one.
        timeout_s: Seconds a call may take, repetitions included. The service is told, and drops what is too late.
        retries: How often a call is repeated after a failed connection or 429; after 503, which a service answers
            that cannot work yet, it is repeated until ``timeout_s``. 0 repeats nothing. Evaluation is pure: it is safe.
        http: An ``httpx`` client to use in place of an own one, for proxies or certificates. Its headers are
            sent along as they are now; it is not closed here.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        http: httpx.Client | None = None,
    ) -> None:
        self._owned = http is None
        self._http = http or httpx.Client(limits=LIMITS)
        self._service = Service(url, api_key, timeout_s, retries, self._http.headers)

    def evaluate(
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
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **parameters_and_inputs: Any,
    ) -> Evaluation:
        """Evaluate a loss, its gradient and metrics.

        Args:
            loss: Its name; for composed losses the request's ``loss`` object.
            prediction: The input of that name: a NumPy array, a torch tensor, anything with ``__array__`` or DLPack,
                or a nested list (floats become float32, integers int64).
            target: The input of that name.
            task: In place of a loss, for metrics alone: binary, multiclass, regression, …
            inputs: Inputs by name, for lists under a name of your own and what is called like one of these arguments.
            outputs: What to compute: ``loss``, ``gradient``, ``gradient.<input>``, ``metrics``. By default all.
            gradient: Options of the gradient: clip_norm, clip_scope, clip_value, dtype.
            metrics: Options of the metrics, or only the names of those wanted.
            timeout_s: Seconds this call may take, where not the client's.
            request_id: What logs call this request; by default a random id.
            **parameters_and_inputs: Arrays and tensors are inputs, and so are lists under an input's name
                (``anchor=…``, ``sample_weight=[1, 0]``); all else are parameters of the loss (``gamma=2.0``,
                ``class_weight=[1, 2]``, ``reduction="none"``).

        Returns:
            The evaluation; its gradients are of the kind of their inputs, NumPy or torch, on the same device.

        Raises:
            Problem: An error that the service answers with; its class says which.
            ConnectionFailed: No answer came.
            UnreadableAnswer: An answer came that is not lossd's.
            TypeError: Arguments contradict each other, or a tensor's dtype does not travel.
        """
        return self._hold(
            self._service.evaluate(
                loss,
                prediction,
                target,
                task=task,
                inputs=inputs,
                outputs=outputs,
                gradient=gradient,
                metrics=metrics,
                timeout_s=timeout_s,
                request_id=request_id,
                keywords=parameters_and_inputs,
            )
        )

    def metrics(
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
        """Compute the metrics of a task, without a loss.

        Args:
            task: binary, multilabel, multiclass, regression, …
            prediction: As for :meth:`evaluate`.
            target: As for :meth:`evaluate`.
            inputs: As for :meth:`evaluate`.
            timeout_s: As for :meth:`evaluate`.
            request_id: As for :meth:`evaluate`.
            **options_and_inputs: Arrays and tensors are inputs, all else are options (``names=["f1"]``,
                ``threshold=0.5``, ``from_logits=False``).
        """
        return self._hold(
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

    def score(
        self,
        batches: Iterable[Batch],
        loss: str | Mapping[str, Any] | None = None,
        /,
        *,
        outputs: Sequence[str] | str | None = None,
        in_flight: int = 8,
        progress: bool | None = None,
        **options: Any,
    ) -> Score:
        """Evaluate many batches, several at a time.

        Args:
            batches: The inputs of each request: (prediction, target), or a mapping of names to tensors. They are drawn
                one by one, while earlier ones are evaluated.
            loss: As for :meth:`evaluate`; none where ``task`` asks for metrics alone.
            outputs: As for :meth:`evaluate`; by default loss and metrics.
            in_flight: The most requests that wait for their answer at any moment.
            progress: Whether to draw a progress bar on standard error; by default where that is a terminal.
            **options: Whatever else :meth:`evaluate` takes, the same for all batches.

        Returns:
            The batches' evaluations in order, and their losses' exact mean.

        Raises:
            LossdError: What the first request that failed raised; those behind it are given up.
        """
        wanted = scored(loss) if outputs is None else outputs

        def evaluate(batch: Batch) -> Evaluation:
            positional, inputs = arguments(batch)
            return self.evaluate(loss, *positional, inputs=inputs, outputs=wanted, **options)

        return score(evaluate, batches, in_flight=in_flight, progress=progress)

    def losses(self) -> list[Record]:
        """Every loss the service has: name, task, summary, formula, inputs, parameters, references."""
        return self._hold(self._service.losses())

    def loss(self, name: str) -> Record:
        """One of them."""
        return self._hold(self._service.loss(name))

    def health(self) -> Record:
        """That the service is up, and its version."""
        return self._hold(self._service.health())

    def ready(self) -> bool:
        """Whether the service takes work at this moment."""
        return self._hold(self._service.ready())

    def wait_until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Return as soon as the service takes work.

        Raises:
            ConnectionFailed: Nothing was there within ``timeout_s``.
            Unavailable: It was there, but not ready.
        """
        self._hold(self._service.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Close the connections."""
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hold(self, conversation: Conversation[T]) -> T:
        try:
            step = next(conversation)
            while True:
                try:
                    answer = self._take(step)
                except httpx.RequestError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _take(self, step: Send | Wait) -> Answer | None:
        if isinstance(step, Wait):
            time.sleep(step.seconds)
            return None
        response = self._http.send(step.request(self._http.cookies), stream=True)
        try:
            receipt = Receipt(response)
            for chunk in response.iter_bytes() if receipt.encoded else response.iter_raw():
                receipt.add(chunk)
        finally:
            response.close()
        return receipt.answer()


class AsyncLossClient:
    """:class:`LossClient` for asyncio: the same methods, to be awaited.

    Args:
        url: As for :class:`LossClient`, and so are all others.
        api_key: Sent as ``Authorization: Bearer``.
        timeout_s: Seconds a call may take, repetitions included.
        retries: How often a call is repeated.
        http: An ``httpx`` client to use in place of an own one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._owned = http is None
        self._http = http or httpx.AsyncClient(limits=LIMITS)
        self._service = Service(url, api_key, timeout_s, retries, self._http.headers)

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
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **parameters_and_inputs: Any,
    ) -> Evaluation:
        """As :meth:`LossClient.evaluate`."""
        return await self._hold(
            self._service.evaluate(
                loss,
                prediction,
                target,
                task=task,
                inputs=inputs,
                outputs=outputs,
                gradient=gradient,
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
        return await self._hold(
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
        batches: Iterable[Batch],
        loss: str | Mapping[str, Any] | None = None,
        /,
        *,
        outputs: Sequence[str] | str | None = None,
        in_flight: int = 8,
        progress: bool | None = None,
        **options: Any,
    ) -> Score:
        """As :meth:`LossClient.score`."""
        wanted = scored(loss) if outputs is None else outputs

        async def evaluate(batch: Batch) -> Evaluation:
            positional, inputs = arguments(batch)
            return await self.evaluate(loss, *positional, inputs=inputs, outputs=wanted, **options)

        return await score_async(evaluate, batches, in_flight=in_flight, progress=progress)

    async def losses(self) -> list[Record]:
        """As :meth:`LossClient.losses`."""
        return await self._hold(self._service.losses())

    async def loss(self, name: str) -> Record:
        """As :meth:`LossClient.loss`."""
        return await self._hold(self._service.loss(name))

    async def health(self) -> Record:
        """As :meth:`LossClient.health`."""
        return await self._hold(self._service.health())

    async def ready(self) -> bool:
        """As :meth:`LossClient.ready`."""
        return await self._hold(self._service.ready())

    async def wait_until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """As :meth:`LossClient.wait_until_ready`."""
        await self._hold(self._service.wait_until_ready(timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _hold(self, conversation: Conversation[T]) -> T:
        try:
            step = next(conversation)
            while True:
                try:
                    answer = await self._take(step)
                except httpx.RequestError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _take(self, step: Send | Wait) -> Answer | None:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return None
        response = await self._http.send(step.request(self._http.cookies), stream=True)
        try:
            receipt = Receipt(response)
            async for chunk in response.aiter_bytes() if receipt.encoded else response.aiter_raw():
                receipt.add(chunk)
        finally:
            await response.aclose()
        return receipt.answer()
