"""``GET /v1/losses/{name}/curve.svg``, ``.png`` and ``.json``: a loss and its gradient along an axis.

The engine evaluates the points like other requests, 16 at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from lossd.api.drawing import POLICY, BoundedQueue, Drawer
from lossd.api.http.asgi import cancel_on_disconnect
from lossd.api.http.negotiation import is_current
from lossd.api.http.request import HttpRequest
from lossd.caches import Cache
from lossd.configuration.settings import Settings
from lossd.engine import Engine, Result
from lossd.pictures.curves import AT, OPTIONS, Line, PointAnswer, curve
from lossd.request.literal import literal
from lossd_client.errors import TooLarge
from lossd_client.wire import Tensor, json

__all__ = ["CLIENT_LEFT", "MAX_QUERY_BYTES", "WAITING_FOR_POINTS", "point_answer", "router", "while_wanted"]

Form = Literal["svg", "png", "json"]
Theme = Literal["auto", "light", "dark"]

MEDIA_TYPES: Mapping[str, str] = {"svg": "image/svg+xml", "png": "image/png", "json": json.MEDIA_TYPE}
CACHED_BYTES = 8 << 20
WAITING_FOR_POINTS = 32
POINTS_AT_A_TIME = 16
CLIENT_LEFT = 499
# Room for the longest formula with every character escaped, and a few numbers.
MAX_QUERY_BYTES = 16 << 10
# Private, because a service may need a key. The ETag changes with the version.
CACHE_CONTROL = "private, max-age=3600"


def router(engine: Engine, settings: Settings) -> APIRouter:
    """Return the route.

    Args:
        engine: Evaluates the points.
        settings: The limits.
    """
    routes = APIRouter(prefix="/v1", tags=["catalogue"])
    answers_cache = _SharedCache()
    points_queue = BoundedQueue(WAITING_FOR_POINTS, "curves")
    drawer = Drawer()

    content: dict[int | str, dict[str, Any]] = {
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}
    }

    @routes.get(
        "/losses/{name}/curve.{form}",
        summary="Draw a loss and its gradient",
        response_class=Response,
        responses=content,
    )
    async def drawn(
        request: Request,
        name: str,
        form: Form,
        x: Annotated[str | None, Query(description="The axis of the curve; by default the loss's first axis.")] = None,
        others: Annotated[list[str], Query(alias="with", description="Losses to draw in the same picture.")] = [],  # noqa: B006  (FastAPI's way)
        low: Annotated[float | None, Query(description="Where the axis begins.")] = None,
        high: Annotated[float | None, Query(description="Where the axis ends.")] = None,
        points: Annotated[int | None, Query(description="The number of points.")] = None,
        requests: Annotated[
            bool, Query(description="For JSON: whether the first request of each line is added.")
        ] = False,
        theme: Annotated[
            Theme, Query(description="The colours of an image; auto follows the reader's system (PNG: light).")
        ] = "auto",
    ) -> Response:
        """Draw a loss and its gradient.

        Every other query parameter is a parameter of the loss; with several values, each value is a line. ``at.NAME``
        sets a further number of the axis, such as ``at.classes=10``; ``GET /v1/losses`` lists these with the axes.
        """
        query = request.url.query
        if len(query) > MAX_QUERY_BYTES:
            raise TooLarge(f"the query has {len(query)} bytes; the query of a curve may have {MAX_QUERY_BYTES}")

        async def document() -> bytes:
            parameters: dict[str, list[Any]] = {}
            at: dict[str, Any] = {}
            for key, text in request.query_params.multi_items():
                if key.startswith(AT):
                    at[key.removeprefix(AT)] = literal(text)
                elif key not in OPTIONS:
                    parameters.setdefault(key, []).append(literal(text))
            plan = curve(name, parameters, others=others, at=at, x=x, low=low, high=high, points=points)
            async with points_queue.wait():
                deadline = time.monotonic() + settings.max_timeout_ms / 1000  # cancelled if all clients leave
                answers = [await _answers(engine, line, deadline) for line in plan.lines]
            return json.dumps(json.finite(plan.document(answers, requests)))

        async def image() -> bytes:
            curve_json = await answers_cache.get((name, query), document)
            return await drawer.draw("curve", curve_json, form, theme)

        query = "&".join(part for part in query.split("&") if not part.startswith("theme="))
        key = (name, query) if form == "json" else (name, query, form, theme)
        received = HttpRequest(request.scope, request.receive, settings)
        received.read_headers()
        found = await while_wanted(
            received, answers_cache.get(key, document if form == "json" else image), "the curve was not finished"
        )
        if found is None:
            return Response(status_code=CLIENT_LEFT)
        tag = f'W/"{hashlib.blake2b(found, digest_size=12).hexdigest()}"'
        headers = {"cache-control": CACHE_CONTROL, "etag": tag, "content-security-policy": POLICY}
        if is_current(received.headers.get(b"if-none-match", b""), tag):
            return Response(status_code=304, headers=headers)
        return Response(found, headers=headers, media_type=MEDIA_TYPES[form])

    return routes


async def while_wanted(request: HttpRequest, work: Coroutine[Any, Any, bytes], late: str) -> bytes | None:
    """Return the result of the work; None if the client leaves.

    Raises:
        DeadlineExceeded: The request's deadline passed.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(cancel_on_disconnect(request.receive, task))
    try:
        async with request.in_time(late):
            await asyncio.wait([task])
            return None if task.cancelled() else task.result()
    finally:
        watcher.cancel()
        task.cancel()


async def _answers(engine: Engine, line: Line, deadline: float) -> list[PointAnswer]:
    """Return the answer to each request of a line."""
    requests = [{name: Tensor.of(array) for name, array in arrays.items()} for arrays in line.inputs]
    types = {name: (tensor.dtype, tensor.shape) for name, tensor in requests[0].items()}
    jobs = {id(plan): plan.job(types) for plan in line.plans}
    answers: list[PointAnswer] = []
    while len(answers) < len(requests):
        futures: list[asyncio.Future[Result]] = []
        try:
            batch = slice(len(answers), len(answers) + POINTS_AT_A_TIME)
            for plan, tensors in zip(line.plans[batch], requests[batch], strict=True):
                data = {name: tensor.data for name, tensor in tensors.items()}
                futures.append(engine.submit(jobs[id(plan)], data, deadline))
            answers += [point_answer(await future) for future in futures]
        finally:
            for future in futures:
                engine.drop(future)
    return answers


def point_answer(result: Result) -> PointAnswer:
    """Return a copy of a result in its slab."""
    columns = {column.name: column.dtype for column in result.job.recipe.answers}
    tensors = {name: np.frombuffer(bytes(data), columns[name]) for name, data in result.tensors.items()}
    loss = tensors.pop("loss", None)
    gradients = {name.removeprefix("gradient."): values for name, values in tensors.items()}
    return PointAnswer(float(json.loads(result.text)["loss"]) if loss is None else loss, gradients)


class _SharedCache:
    """A cache of answers. Clients that wait for the same answer share the work."""

    def __init__(self) -> None:
        self._answers: Cache[tuple[str, ...], bytes] = Cache("curves", CACHED_BYTES)
        self._tasks: dict[tuple[str, ...], asyncio.Task[bytes]] = {}
        self._waiting: Counter[asyncio.Task[bytes]] = Counter()

    async def get(self, key: tuple[str, ...], make: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """Return the answer under a key, and make it if it is absent.

        A failure is not cached. The work is cancelled when all its clients have left.
        """
        answer = self._answers.get(key)
        if answer is not None:
            return answer
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(make())
        self._waiting[task] += 1
        try:
            answer = await asyncio.shield(task)
            self._answers.put(key, answer, 1024 + len(answer) + sum(map(len, key)))
            return answer
        finally:
            self._waiting[task] -= 1
            if not self._waiting[task]:
                del self._waiting[task]
                task.cancel()  # no effect on a finished task
            if (task.done() or task not in self._waiting) and self._tasks.get(key) is task:
                del self._tasks[key]
