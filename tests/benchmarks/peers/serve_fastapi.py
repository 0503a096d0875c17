"""The job behind FastAPI, evaluated where the request arrives, one after another: uvicorn serve_fastapi:app."""

from __future__ import annotations

import bodies
import job
from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/evaluate")
async def evaluate(request: Request) -> Response:
    # In the event loop, not in a thread: on work this short the switch costs more than it gives.
    (answer,) = job.evaluate([bodies.read(await request.body())])
    return Response(bodies.write(answer), media_type="application/octet-stream")
