"""The job behind LitServe, which batches requests for one worker process: serve_litserve.py PORT."""

import sys
from typing import Annotated

import bodies
import job
import litserve
from fastapi import Depends, Request, Response


async def body(request: Request) -> bytes:
    return await request.body()


class Loss(litserve.LitAPI):
    def setup(self, device: str) -> None:
        pass

    # What a dependency yields goes to the worker as it is; a request object could not. LitServe reads this annotation,
    # and could not if annotations were strings.
    def decode_request(self, request: Annotated[bytes, Depends(body)]) -> job.Request:
        return bodies.read(bytearray(request))

    def batch(self, inputs: list[job.Request]) -> list[job.Request]:
        return inputs

    def predict(self, x: list[job.Request]) -> list[job.Answer]:
        return job.evaluate(x)

    def unbatch(self, output: list[job.Answer]) -> list[job.Answer]:
        return output

    def encode_response(self, output: job.Answer) -> Response:
        return Response(bodies.write(output), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(
        Loss(max_batch_size=64, batch_timeout=0.001),
        accelerator="cpu",
        workers_per_device=1,
        timeout=300,
        max_payload_size=1 << 30,
        fast_queue=True,
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error", access_log=False)
