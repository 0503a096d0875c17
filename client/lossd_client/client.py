"""``LossClient``: the methods to call, and the I/O.

:mod:`lossd_client.messages` composes the requests; :mod:`lossd_client.exchange` decides when to retry.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar, overload
from weakref import WeakSet

import httpx

from lossd_client.addresses import Addresses, socket_path, split_urls
from lossd_client.calls import Conversation, HttpResponse, ReceivedResponse, Resolve, Send, Wait
from lossd_client.comparisons import Comparison, Comparisons
from lossd_client.connections import (
    Patience,
    connects_by_name,
    find_records,
    trusted,
    wait_below,
)
from lossd_client.messages import Evaluation, Record
from lossd_client.runs import RemoteRun, open_run
from lossd_client.score import BatchInputs, Score, arguments, default_outputs, score
from lossd_client.service import Service

__all__ = [
    "DEFAULT_RETRIES",
    "DEFAULT_STALL_S",
    "DEFAULT_TIMEOUT_S",
    "DEFAULT_URL",
    "LIMITS",
    "LossClient",
    "check_cacert",
    "socket_of",
]

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0
DEFAULT_RETRIES = 3
DEFAULT_STALL_S = 15.0
# Shorter than the service's keep-alive, so that the client never sends on a connection the service has closed.
LIMITS = httpx.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=30.0)

_clients: WeakSet[LossClient] = WeakSet()


def check_cacert(cacert: object, http: object) -> None:
    """Check that ``cacert`` and ``http`` are not both set.

    Raises:
        ValueError: They are.
    """
    if cacert is not None and http is not None:
        raise ValueError("cacert is for connections that the client opens; configure the certificates of http instead")


class LossClient:
    """A client of a lossd service. Threads may share it, and a forked process may use it.

    >>> with LossClient("http://localhost:8000") as lossd:  # doctest: +SKIP
    ...     result = lossd.evaluate("focal", prediction, target, gamma=2.0)
    ...     result.loss, result.gradient, result.metrics.f1.macro

    Args:
        url: The service's address, or several: a sequence, or one text with commas. A Unix socket, such as
            ``unix:///run/lossd.sock``, must be the only address. A name with several records (A, AAAA) is several
            addresses; it is resolved again every 30 seconds. Each call goes to the address with the fewest calls in
            flight. An address that fails is not used for a second, and the call goes to another one.
        api_key: Sent as ``Authorization: Bearer``, for a service that requires a key.
        timeout_s: Seconds a call may take, retries included. The service gets the deadline and drops expired requests.
        retries: How often a call is retried after a failed connection, 429, or a proxy's answer in place of lossd's. A
            503 is retried until ``timeout_s``, because a starting service answers with 503. If an address refuses the
            connection, the call first goes to the other addresses; that does not count as a retry. 0 turns all retries
            off. Retrying is safe: an evaluation is pure.
        stall_s: If no byte is sent or received for this many seconds, the client requests ``/health/live`` on another
            connection. If that is answered within a few seconds, the call waits longer; otherwise it is sent again.
            ``math.inf`` turns this off.
        cacert: A PEM file with the certificates of a private authority. They are trusted in addition to the system's.
        http: An ``httpx`` client to use instead of a new one, for proxies or certificates. Its current headers are sent
            with every call. ``close`` leaves it open. If its transport is not httpx's own, that transport resolves
            names, and ``stall_s`` has no effect.
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
        http: httpx.Client | None = None,
    ) -> None:
        check_cacert(cacert, http)
        self._urls = split_urls(url)
        self._socket = socket_of(self._urls, http)
        self._owned = http is None
        self._certificates = trusted(cacert) if http is None and self._socket is None else None
        self._http = http or self._connections()
        wait_below(self._http)
        self._service = Service(self._addresses(), api_key, timeout_s, retries, stall_s, self._http.headers)
        _clients.add(self)

    def _connections(self) -> httpx.Client:
        if self._socket is not None:
            return httpx.Client(transport=httpx.HTTPTransport(uds=self._socket, limits=LIMITS))
        assert self._certificates is not None
        return httpx.Client(limits=LIMITS, verify=self._certificates)

    def _addresses(self) -> Addresses:
        return Addresses(self._urls, resolve=all(connects_by_name(self._http, url) for url in self._urls))

    def _forked(self) -> None:
        """Share neither connections nor locks with the process that this one was forked from."""
        if self._owned:
            self._http = self._connections()
            wait_below(self._http)
        self._service.addresses = self._addresses()

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
        hessian: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        timeout_s: float | None = None,
        request_id: str | None = None,
        **parameters_and_inputs: Any,
    ) -> Evaluation:
        """Evaluate a loss, its gradient and metrics.

        Args:
            loss: The loss's name; for composed losses the request's ``loss`` object.
            prediction: The input ``prediction``: a NumPy array, a torch tensor, anything with ``__array__`` or DLPack,
                or a nested list (floats become float32, integers int64).
            target: The input ``target``, of the same types.
            task: The task whose metrics are computed without a loss: binary, multiclass, regression, …
            inputs: Inputs by name. Use it for lists under a name of your own, and for an input that has the name of one
                of these arguments.
            outputs: What to compute: ``loss``, ``gradient``, ``gradient.<input>``, ``metrics``, ``hessian``,
                ``hessian.<input>``, ``hvp``, ``hvp.<input>``. The default is loss, gradient and metrics.
            gradient: Options of the gradient: clip_norm, clip_scope, clip_value, dtype, layout.
            hessian: Options of the Hessian: form (exact, fisher, xgboost, lightgbm), floor.
            metrics: Options of the metrics, or only the metrics' names.
            timeout_s: Seconds this call may take; the default is the client's.
            request_id: The request's id in logs; the default is a random id.
            **parameters_and_inputs: Arrays, tensors, and lists under an input's name are inputs (``anchor=…``,
                ``sample_weight=[1, 0]``). All others are parameters of the loss (``gamma=2.0``, ``class_weight=[1,
                2]``, ``reduction="none"``).

        Returns:
            The evaluation. Each gradient has the shape, the dtype, the library (NumPy or torch) and the device of its
            input. For float16, bfloat16 and integers its dtype is float32. The gradient's ``dtype`` and ``layout``
            change dtype and shape.

        Raises:
            Problem: The service answered with an error; the class tells its type.
            ConnectionFailed: No answer came.
            UnreadableAnswer: The answer is not lossd's.
            TypeError: Arguments contradict each other, or the wire does not carry a tensor's dtype.
        """
        return self._run(
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
            task: The task: binary, multilabel, multiclass, regression, …
            prediction: As for :meth:`evaluate`.
            target: As for :meth:`evaluate`.
            inputs: As for :meth:`evaluate`.
            timeout_s: As for :meth:`evaluate`.
            request_id: As for :meth:`evaluate`.
            **options_and_inputs: Arrays and tensors are inputs, all others are options (``names=["f1"]``,
                ``threshold=0.5``, ``from_logits=False``).

        Returns:
            The evaluation; its ``metrics`` are set, and its ``loss`` is None.

        Raises:
            LossdError: As for :meth:`evaluate`.
            TypeError: As for :meth:`evaluate`.
        """
        return self._run(
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
        batches: Iterable[BatchInputs],
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
            batches: The inputs of each request: (prediction, target), or a mapping of names to tensors. The iterator is
                advanced while earlier batches are evaluated.
            loss: As for :meth:`evaluate`; None if ``task`` is given.
            outputs: As for :meth:`evaluate`; the default is loss and metrics.
            in_flight: The maximum number of requests in flight.
            progress: Whether to draw a progress bar on standard error; the default is only on a terminal.
            **options: Any other argument of :meth:`evaluate`, the same for all batches.

        Returns:
            The evaluations in the order of the batches, and the exact mean of the loss.

        Raises:
            LossdError: The error of the first request that failed; later batches are cancelled.
        """
        requested = default_outputs(loss) if outputs is None else outputs

        def evaluate(batch: BatchInputs) -> Evaluation:
            positional, inputs = arguments(batch)
            return self.evaluate(loss, *positional, inputs=inputs, outputs=requested, **options)

        return score(evaluate, batches, in_flight=in_flight, progress=progress)

    def run(
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
    ) -> RemoteRun:
        """Create a run, or open the run with this name and definition. The service counts its rows and keeps its score.

        Args:
            name: The run's name: 1 to 200 letters, digits and ``. _ ~ -``. Without a definition, an existing run is
                opened.
            task: The task whose metrics are computed: binary, multiclass, … The default is the loss's task.
            loss: The loss's name, or an object of its name and parameters; None for metrics alone.
            metrics: The metrics' names, or an object of names and options. The default is the task's default metrics;
                [] counts the loss alone.
            dataset: The data set's name, ``name@version``, or an object of name, version, rows and targets.
            rows: The number of rows of the data set. The run can be sealed only when all of them are counted.
            targets: The fingerprint that the targets must have, from a result: ``t1:`` and 32 hexadecimal digits.
            identity: What identifies the rows, so that no row counts twice: ``position`` (each batch has the position
                of its first row), ``id`` (each row has an integer, the input ``sample_id``), or ``batch`` (each batch
                has a name).
            scope: ``batch`` allows metrics that compare the rows of a batch with each other.
            limit: The maximum number of rows in the tables of one metric.
            groups: The number of groups of rows from which intervals are computed; 0 for no intervals.
            slices: The values of each slice by its name, such as ``{"site": ["A", "B"]}``. Each value has a score too.
            crossed: Slices whose combinations have scores too, such as ``[["site", "sex"]]``.
            tags: Text by name, such as a commit; not part of the definition.
            public: Whether other keys may read the run; not part of the definition.
            owner: The owner of a public run, to read it.
            **parameters: The loss's parameters.

        Raises:
            RunDiffers: A run of that name has another definition; ``fields`` lists the differences.
            UnknownRun: There is no run of that name, and no definition was given.
            LossdError: The definition is invalid, or no answer came.
            TypeError: Arguments contradict each other.
        """
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
        return RemoteRun(self._run, self._service, self._run(conversation), owner)

    def runs(
        self,
        *,
        dataset: str | None = None,
        task: str | None = None,
        status: Literal["open", "sealed"] | None = None,
        tag: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:
        """Return the runs of this key and the public runs.

        ``summary`` has the numbers of a run's result. For an open run they are from the latest result that was read,
        and ``summary_of`` has the numbers of ``rows`` and ``batches`` counted at that time.

        Args:
            dataset: Only runs on the data set of this name, or ``name@version``.
            task: Only runs of this task.
            status: Only open runs, or only sealed ones.
            tag: Only runs with this tag: its name and its value, as ``commit:4f1c``.
            sort: The order: a metric such as ``f1.macro``, or ``-f1.macro`` with the highest first.
            limit: The maximum number of runs; None for all.

        Returns:
            An entry for each run, as in the answer of ``GET /v1/runs``.

        Raises:
            InvalidRequest: An argument is invalid.
            LossdError: No answer came.
        """
        return self._run(self._service.runs(limit, dataset=dataset, task=task, status=status, tag=tag, sort=sort))

    @overload
    def compare(
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
    def compare(
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

    def compare(
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
        """Compare runs with a baseline: each difference, its interval and its p.

        The runs must have the same definition, rows and targets. The comparison is paired by groups of the same rows.
        It does not need the predictions.

        Args:
            baseline: The name of the run that the others are compared with.
            run: The name of the other run.
            *others: The names of further runs.
            owner: The owner of public runs: one for all, or one for each run, None for your own.
            metrics: Only these metrics; the default is those of the runs' definition.
            classes: Whether to compare the metrics of single classes too.
            slices: Whether to compare the runs on each slice too.
            level: The level of the intervals, above 0.5; the default is 0.95.
            unpaired: Whether runs of different rows are compared as independent samples, which is less sensitive.

        Returns:
            A comparison for two runs: ``compare("a", "b")["f1.macro"].verdict``. Comparisons for three runs or more.

        Raises:
            NotComparable: The runs differ in definition, rows or targets; ``runs`` lists the runs and their
                differences.
            UnknownRun: A run does not exist.
            InvalidRequest: The runs have not counted what a metric needs, or an argument is out of range.
            LossdError: No answer came.
        """
        conversation = self._service.compare(
            [baseline, run, *others], owner, metrics, level, classes=classes, slices=slices, unpaired=unpaired
        )
        found = self._run(conversation)
        return found if others else found.comparisons[0]

    def losses(self) -> list[Record]:
        """Return every loss of the service: name, task, summary, formula, inputs, parameters, references."""
        return self._run(self._service.losses())

    def loss(self, name: str) -> Record:
        """Return the entry of one loss, with the same fields as :meth:`losses`."""
        return self._run(self._service.loss(name))

    def health(self) -> Record:
        """Return the service's status and version."""
        return self._run(self._service.health())

    def ready(self) -> bool:
        """Return whether the service accepts work now."""
        return self._run(self._service.ready())

    def wait_until_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Return as soon as the service accepts work.

        Raises:
            ConnectionFailed: No service answered within ``timeout_s``.
            Unavailable: The service answered, but was not ready within ``timeout_s``.
        """
        self._run(self._service.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Close the connections."""
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, conversation: Conversation[T]) -> T:
        try:
            step = next(conversation)
            while True:
                try:
                    response = self._perform(step)
                except httpx.RequestError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(response)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            conversation.close()  # an attempt that an exception ended is no longer in flight

    def _perform(self, step: Send | Wait | Resolve) -> HttpResponse | list[str] | None:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Resolve):
            return find_records(step.name)
        time.sleep(step.seconds)
        return None

    def _send(self, step: Send) -> HttpResponse:
        request = step.request(self._http.cookies)
        timeout = request.extensions["timeout"]
        patience = Patience(timeout["read"], min(step.quiet_s, timeout["read"]), lambda: self._lives(step))
        timeout["read"] = timeout["write"] = patience
        response = self._http.send(request, stream=True)
        try:
            received = ReceivedResponse(response)
            for chunk in response.iter_bytes() if received.encoded else response.iter_raw():
                received.add(chunk)
        finally:
            response.close()
        return received.response()

    def _lives(self, step: Send) -> bool:
        """Return whether the service that an attempt waits for answers on another connection."""
        try:
            self._http.send(step.probe().request())
        except httpx.RequestError as error:
            return isinstance(error, httpx.PoolTimeout)  # no connection was free, which says nothing of the service
        return True


def socket_of(urls: Sequence[str], http: object) -> str | None:
    """Return the path of the Unix socket to connect to; None if the address is a host's.

    Raises:
        ValueError: The caller's ``http`` client would not connect to it.
    """
    path = socket_path(urls[0])
    if path is not None and http is not None:
        raise ValueError(
            f"{urls[0]} and http exclude each other; give the client the socket, as in "
            f"httpx.HTTPTransport(uds={path!r}), and use the address http://localhost"
        )
    return path


def _after_fork() -> None:
    for client in list(_clients):
        client._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
