"""The job behind FastAPI, evaluated where the request arrives, one after another: uvicorn serve_fastapi:app."""

from __future__ import annotations

import bodies
import job
import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

app = FastAPI()


@app.post("/evaluate")
async def evaluate(request: Request) -> Response:
    # In the event loop, not in a thread: on work this short the switch costs more than it gives.
    (answer,) = job.evaluate([bodies.read(await request.body())])
    return Response(bodies.write(answer), media_type="application/octet-stream")


class Loss(BaseModel):
    name: str
    gamma: float = 2.0


class Inputs(BaseModel):
    prediction: list[list[float]]
    target: list[int]


class Body(BaseModel):
    loss: Loss
    inputs: Inputs


@app.post("/evaluate-json")
async def evaluate_json(request: Request) -> Response:
    # As a parameter of the route, the body is parsed by the standard library; model_validate_json takes longer, too.
    body = Body.model_validate(orjson.loads(await request.body()))
    prediction = torch.from_numpy(np.array(body.inputs.prediction, np.float32))  # torch.tensor takes four times as long
    target = torch.from_numpy(np.array(body.inputs.target, np.int64))
    (answer,) = job.evaluate([job.Request(body.loss.name, body.loss.gamma, prediction, target)])
    assert answer.confusion is not None
    document = {
        "loss": answer.loss,
        "metrics": {**answer.metrics, "confusion_matrix": answer.confusion.numpy()},
        "gradient": {"prediction": answer.gradient.numpy()},
    }
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
