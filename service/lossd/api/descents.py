"""``GET /v1/losses/{name}/descent.json``: gradient descent of a linear model by a loss, in one request."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from lossd.api.curves import CLIENT_LEFT, MAX_QUERY_BYTES, WAITING_FOR_POINTS, point_answer, while_wanted
from lossd.api.drawing import BoundedQueue
from lossd.api.http.request import HttpRequest
from lossd.configuration.settings import Settings
from lossd.engine import Engine
from lossd.pictures.descent import OWN, Descent, descent
from lossd.request.literal import literal
from lossd_client.errors import TooLarge
from lossd_client.wire import Tensor, json

__all__ = ["router"]


def router(engine: Engine, settings: Settings) -> APIRouter:
    """Return the route.

    Args:
        engine: Evaluates the steps.
        settings: The limits.
    """
    routes = APIRouter(prefix="/v1", tags=["catalogue"])
    queue = BoundedQueue(WAITING_FOR_POINTS, "descents")

    @routes.get("/losses/{name}/descent.json", summary="Train a linear model with a loss", response_class=Response)
    async def trained(
        request: Request,
        name: str,
        features: Annotated[str, Query(description="The features: a list of numbers for each row.")],
        target: Annotated[str, Query(description="The target of each row, as a list.")],
        start: Annotated[str, Query(description="The initial weights, as a list.")],
        rate: Annotated[float, Query(description="The step size.")],
        steps: Annotated[int, Query(description="The number of steps, up to 200.")],
    ) -> Response:
        """Train a linear model by gradient descent.

        A row's score is the sum of its features, each multiplied by its weight. A loss of classes takes two scores, and
        the first is 0. Every other query parameter is a parameter of the loss. The answer has the weights (``at``) and
        the ``loss`` of each step, and ``diverged``: whether the descent ended early because the weights diverged.
        """
        query = request.url.query
        if len(query) > MAX_QUERY_BYTES:
            raise TooLarge(f"the query has {len(query)} bytes; the query of a descent may have {MAX_QUERY_BYTES}")
        values = {key: literal(text) for key, text in request.query_params.items()}
        options = {key: values.pop(key) for key in OWN}
        walk = descent(name, values, options, rate=rate, steps=steps)

        async def document() -> bytes:
            async with queue.wait():
                deadline = time.monotonic() + settings.max_timeout_ms / 1000  # cancelled if the client leaves
                return json.dumps(json.finite(await _walked(engine, walk, deadline)))

        received = HttpRequest(request.scope, request.receive, settings)
        received.read_headers()
        found = await while_wanted(received, document(), "the descent was not finished")
        if found is None:
            return Response(status_code=CLIENT_LEFT)
        return Response(found, media_type=json.MEDIA_TYPE)

    return routes


async def _walked(engine: Engine, walk: Descent, deadline: float) -> dict[str, Any]:
    """Return the weights and the loss at each step, the start first."""
    at = walk.start
    types = {name: (tensor.dtype, tensor.shape) for name, tensor in _tensors(walk, at).items()}
    job = walk.plan.job(types)
    places, losses, diverged = [at.tolist()], [], False
    while True:
        future = engine.submit(job, {name: tensor.data for name, tensor in _tensors(walk, at).items()}, deadline)
        try:
            answer = point_answer(await future)
        finally:
            engine.drop(future)
        losses.append(float(answer.loss))
        if len(losses) > walk.steps:
            break
        at = walk.next(at, answer)
        if diverged := walk.diverges(at):
            break
        places.append(at.tolist())
    return {"at": places, "loss": losses, "diverged": diverged}


def _tensors(walk: Descent, at: Any) -> dict[str, Tensor]:
    return {name: Tensor.of(array) for name, array in walk.inputs(at).items()}
