"""``GET /v1/losses/{name}/curve.svg``, ``.png`` and ``.json``: what a loss and its gradient look like.

Points are evaluated by the engine like any request, a few at a time. Images are drawn by a process of their own, which
lives for one image: it neither holds up the loop that serves requests nor leaves its libraries in this one's memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from lossd.api.http.asgi import cancel_on_disconnect
from lossd.api.http.request import HttpRequest
from lossd.caches import Cache
from lossd.configuration.settings import Settings
from lossd.engine import Engine, Result
from lossd.pictures.curves import AT, OPTIONS, Line, PointAnswer, curve
from lossd.request.literal import literal
from lossd_client.errors import QueueFull, TooLarge, Unavailable
from lossd_client.wire import Tensor, json

__all__ = ["router"]

Form = Literal["svg", "png", "json"]
Theme = Literal["auto", "light", "dark"]

MEDIA_TYPES: Mapping[str, str] = {"svg": "image/svg+xml", "png": "image/png", "json": json.MEDIA_TYPE}
CACHED_BYTES = 16 << 20
WAITING_FOR_POINTS, WAITING_FOR_IMAGES = 32, 8
POINTS_AT_A_TIME = 16
DRAWING_S = 30.0
CLIENT_LEFT = 499
# The longest formula, every character of it escaped, and a few numbers.
MAX_QUERY_BYTES = 16 << 10
# Private, since a service with keys lets only some read it; an answer changes with the version, hence the tag.
CACHE_CONTROL = "private, max-age=3600"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def router(engine: Engine, settings: Settings) -> APIRouter:
    """The route.

    Args:
        engine: Where points are evaluated.
        settings: Limits.
    """
    routes = APIRouter(prefix="/v1", tags=["catalogue"])
    kept = _Kept()
    points_turn = _OneAtATime(WAITING_FOR_POINTS, "curves")
    drawing_turn = _OneAtATime(WAITING_FOR_IMAGES, "images")

    content: dict[int | str, dict[str, Any]] = {
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}}
    }

    @routes.get(
        "/losses/{name}/curve.{form}",
        summary="A loss and its gradient, drawn",
        response_class=Response,
        responses=content,
    )
    async def drawn(
        request: Request,
        name: str,
        form: Form,
        x: Annotated[str | None, Query(description="What it is drawn along; the loss's first axis by default.")] = None,
        others: Annotated[list[str], Query(alias="with", description="Losses to lay over it.")] = [],  # noqa: B006  (FastAPI's way)
        low: Annotated[float | None, Query(description="Where the axis begins.")] = None,
        high: Annotated[float | None, Query(description="Where the axis ends.")] = None,
        points: Annotated[int | None, Query(description="How many points.")] = None,
        requests: Annotated[bool, Query(description="Of JSON: add the first request of each line.")] = False,
        theme: Annotated[Theme, Query(description="Of images; auto is that of the reader (PNG: light).")] = "auto",
    ) -> Response:
        """Draw a loss and its gradient.

        Every other query parameter is a parameter of the loss; with several values, each value is a line. ``at.NAME``
        sets a further number of the axis, such as ``at.classes=10``; ``GET /v1/losses`` lists these with the axes.
        """
        query = request.url.query
        if len(query) > MAX_QUERY_BYTES:
            raise TooLarge(f"the query has {len(query)} bytes; that of a curve may have {MAX_QUERY_BYTES}")

        async def document() -> bytes:
            parameters: dict[str, list[Any]] = {}
            at: dict[str, Any] = {}
            for key, text in request.query_params.multi_items():
                if key.startswith(AT):
                    at[key.removeprefix(AT)] = literal(text)
                elif key not in OPTIONS:
                    parameters.setdefault(key, []).append(literal(text))
            of = curve(name, parameters, others=others, at=at, x=x, low=low, high=high, points=points)
            async with points_turn.turn():
                deadline = time.monotonic() + settings.max_timeout_ms / 1000  # given up sooner if nobody waits for it
                answers = [await _answers(engine, line, deadline) for line in of.lines]
            return json.dumps(json.finite(of.document(answers, requests)))

        async def image() -> bytes:
            of = await kept.get((name, query), document)
            async with drawing_turn.turn():
                drawing = asyncio.ensure_future(asyncio.to_thread(_draw, of, form, theme))
                try:
                    return await asyncio.shield(drawing)
                finally:
                    await asyncio.wait([drawing])  # its process holds the turn, even where nobody waits for it

        query = "&".join(part for part in query.split("&") if not part.startswith("theme="))
        key = (name, query) if form == "json" else (name, query, form, theme)
        received = HttpRequest(request.scope, request.receive, settings)
        received.read_headers()
        found = await _while_wanted(received, kept.get(key, document if form == "json" else image))
        if found is None:
            return Response(status_code=CLIENT_LEFT)
        tag = f'"{hashlib.blake2b(found, digest_size=12).hexdigest()}"'
        headers = {"cache-control": CACHE_CONTROL, "etag": tag, "content-security-policy": POLICY}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found, headers=headers, media_type=MEDIA_TYPES[form])

    return routes


async def _while_wanted(request: HttpRequest, work: Coroutine[Any, Any, bytes]) -> bytes | None:
    """What the work comes to; it ends at the request's deadline, and with None when the client leaves."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(cancel_on_disconnect(request.receive, task))
    try:
        async with request.in_time("the curve was not there"):
            await asyncio.wait([task])
            return None if task.cancelled() else task.result()
    finally:
        watcher.cancel()
        task.cancel()


async def _answers(engine: Engine, line: Line, deadline: float) -> list[PointAnswer]:
    """What the service answers to each request of a line."""
    taken = [{name: Tensor.of(of) for name, of in each.items()} for each in line.inputs]
    types = {name: (of.dtype, of.shape) for name, of in taken[0].items()}
    jobs = {id(plan): plan.job(types) for plan in line.plans}
    answers: list[PointAnswer] = []
    while len(answers) < len(taken):
        futures: list[asyncio.Future[Result]] = []
        try:
            batch = slice(len(answers), len(answers) + POINTS_AT_A_TIME)
            for plan, each in zip(line.plans[batch], taken[batch], strict=True):
                futures.append(engine.submit(jobs[id(plan)], {name: of.data for name, of in each.items()}, deadline))
            answers += [_answer(await future) for future in futures]
        finally:
            for future in futures:
                if not future.cancel() and not future.cancelled() and future.exception() is None:
                    future.result().release()
    return answers


def _answer(result: Result) -> PointAnswer:
    """A copy of what is in the slab."""
    columns = {column.name: column.dtype for column in result.job.recipe.answers}
    tensors = {name: np.frombuffer(bytes(of), columns[name]) for name, of in result.tensors.items()}
    loss = tensors.pop("loss", None)
    gradients = {name.removeprefix("gradient."): of for name, of in tensors.items()}
    return PointAnswer(float(json.loads(result.text)["loss"]) if loss is None else loss, gradients)


class _Kept:
    """What was answered lately, or is being worked on: whoever asks for the same shares it."""

    def __init__(self) -> None:
        self._answers: Cache[tuple[str, ...], bytes] = Cache("curves", CACHED_BYTES)
        self._tasks: dict[tuple[str, ...], asyncio.Task[bytes]] = {}
        self._waiting: Counter[asyncio.Task[bytes]] = Counter()

    async def get(self, key: tuple[str, ...], make: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        """What is kept under a key; made if it is not there. A failure is not kept, nor what nobody waits for."""
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
                task.cancel()  # which does nothing to one that is done
            if (task.done() or task not in self._waiting) and self._tasks.get(key) is task:
                del self._tasks[key]


class _OneAtATime:
    """One at a time, and a few that wait.

    Args:
        waiting: How many may.
        what: What they wait for.
    """

    def __init__(self, waiting: int, what: str) -> None:
        self._turn = asyncio.Semaphore(1)
        self._most = waiting
        self._waiting = 0
        self._what = what

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn, and have it.

        Raises:
            QueueFull: Too many wait already.
        """
        if self._waiting >= self._most:
            raise QueueFull(f"{self._most} {self._what} are waiting to be made, as many as may", retry_after_s=2.0)
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1


def _draw(document: bytes, form: str, theme: str) -> bytes:
    command = [sys.executable, "-P", "-m", "lossd.pictures.plots", "curve", form, theme]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, input=document, capture_output=True, env=environment, timeout=DRAWING_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"the picture was not drawn within {DRAWING_S:g} s", retry_after_s=DRAWING_S) from None
    if run.returncode:
        raise RuntimeError(f"drawing ended with {run.returncode}: {run.stderr.decode(errors='replace')[-2000:]}")
    return run.stdout
