"""The job behind mosec, which batches requests for one worker process: serve_mosec.py LARGEST_BATCH --port PORT."""

from __future__ import annotations

import sys

import bodies
import job
from mosec import Server, Worker


class Loss(Worker):
    def deserialize(self, data: bytes) -> job.Request:
        return bodies.read(data)

    def forward(self, data: list[job.Request] | job.Request) -> list[job.Answer] | job.Answer:
        return job.evaluate(data) if isinstance(data, list) else job.evaluate([data])[0]

    def serialize(self, data: job.Answer) -> bytes:
        return bodies.write(data)


if __name__ == "__main__":
    server = Server()
    # A millisecond is the shortest wait for company that mosec knows.
    server.append_worker(Loss, num=1, max_batch_size=int(sys.argv[1]), max_wait_time=1)
    server.run()
