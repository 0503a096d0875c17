"""A worker: one process, one device, one batch after the other.

``python -m lossd.engine.worker --device cpu --threads 1 --socket FD``. It reads manifests, evaluates the
batches in their slabs, and replies. It ends when the last front has closed its connection.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson
import torch

from lossd import logs
from lossd.compiled.passes import Passes
from lossd.configuration.machine import raise_file_limit, tune_allocator
from lossd.engine.busy_time import BusyTime
from lossd.engine.heartbeat import PROBE, Heartbeat, Unwanted
from lossd.engine.lane import Lane
from lossd.engine.pipeline import Pipeline, Staged
from lossd.engine.process_handle import own_descriptor
from lossd.engine.protocol import HELLO, Reply, encode_reply
from lossd.engine.work import answer_in_memory
from lossd.engine.worker_connections import FrontConnection, FrontConnections, Manifest
from lossd.evaluation.device_errors import is_broken_device, unusable
from lossd.evaluation.in_memory import texts_of
from lossd_client.errors import InternalError, TooLarge

__all__ = ["main", "run", "serve", "serve_ahead"]

log = logging.getLogger("lossd.engine")

BROKEN, UNUSABLE = 70, 78
LARGE_BYTES = 64 << 20
NOTE_S = 1.0
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
ALONE = 8
COME_S = 5.0


def serve(
    fronts: FrontConnections,
    device: torch.device,
    heartbeat: Heartbeat,
    poll_s: float = 0.0,
    lane: Lane | None = None,
    passes: Passes | None = None,
    busy: BusyTime | None = None,
) -> None:
    """Evaluate batches, one after the other, until all fronts have closed their connections.

    A long batch waits until all others that were sent are done. A lane for short ones is opened before it.

    A client that sends one request at a time sends the next one soon after the answer. After several batches of one
    request, if the last one came within ``poll_s``, the worker polls for ``poll_s`` before it sleeps.
    """
    alone, waited_s = 0, 0.0
    busy = busy or BusyTime()
    long: deque[tuple[FrontConnection, Manifest]] = deque()
    while fronts:
        begin = time.perf_counter()
        busy.end()
        received = fronts.receive(wait=not long, poll_s=poll_s if alone >= ALONE and waited_s < poll_s else 0.0)
        busy.begin()
        waited_s = time.perf_counter() - begin
        if long and not received:
            received = [long.popleft()]
            if lane is not None:
                lane.open(fronts)
        elif any("long" in manifest for _, manifest in received):
            heartbeat.engage(True)  # from now on, no front sends another batch
            long += [one for one in received if "long" in one[1]]
            received = [one for one in received if "long" not in one[1]]
        for front, manifest in received:
            if front.gone:
                heartbeat.engage(bool(long))
                continue
            heartbeat.begin(front.number, manifest["batch"], front.pid)
            memory = front.slab(manifest)
            reply = _answer_if_wanted(manifest, memory, device, heartbeat, passes)
            heartbeat.end()
            if "long" in manifest:
                heartbeat.engage(bool(long))
            fronts.reply(front, reply)
            alone = alone + 1 if len(reply.answers) == 1 else 0
            size = len(memory)
            del memory  # else the slab of a front that is gone would stay mapped until the next batch
            if size >= LARGE_BYTES:
                _return_free_memory()
            if lane is not None:
                lane.tidy()


def _answer_if_wanted(
    manifest: Mapping[str, Any], memory: Any, device: torch.device, heartbeat: Heartbeat, passes: Passes | None
) -> Reply:
    """Return the reply to a batch. The evaluation stops if a front marks the batch as unwanted."""
    begin = time.perf_counter_ns()
    try:
        heartbeat.may_stop = True
        texts, compute_ns = answer_in_memory(manifest, memory, device, passes)
        heartbeat.may_stop = False
    except Unwanted:
        _return_free_memory()
        unread = texts_of([InternalError("nobody waited for the answer: its evaluation was ended")])
        texts, compute_ns = unread * len(manifest["rows"]), time.perf_counter_ns() - begin
    return Reply(manifest["batch"], 0, compute_ns, texts)


def serve_ahead(
    fronts: FrontConnections, pipeline: Pipeline, heartbeat: Heartbeat, busy: BusyTime | None = None
) -> None:
    """Evaluate batches on a GPU, as :func:`serve` does; the next batches are copied in during an evaluation."""
    staged: deque[tuple[FrontConnection, Staged]] = deque()
    next_note = 0.0
    busy = busy or BusyTime()

    def receive() -> list[tuple[FrontConnection, Manifest]]:
        if not staged:
            busy.end()
        received = fronts.receive(wait=not staged)
        busy.begin()
        return received

    while fronts:
        while fronts and (received := receive()):  # repeatedly: a read may return a single batch
            for front, manifest in received:
                if not front.gone:
                    staged.append((front, pipeline.stage(manifest, front.slab(manifest))))
        if staged:
            _serve_staged(fronts, pipeline, heartbeat, staged)
        if pipeline.device.type == "cuda" and (now := time.monotonic()) >= next_note:
            next_note = now + NOTE_S
            free_and_total = torch.cuda.mem_get_info(pipeline.device)
            heartbeat.note_memory(torch.cuda.memory_reserved(pipeline.device), *free_and_total)


def _serve_staged(
    fronts: FrontConnections, pipeline: Pipeline, heartbeat: Heartbeat, staged: deque[tuple[FrontConnection, Staged]]
) -> None:
    """Serve the first staged batch. After this returns, nothing refers to its slab or its memory on the device."""
    front, batch = staged.popleft()
    if front.gone:
        return
    heartbeat.begin(front.number, batch.manifest["batch"], front.pid)
    outcomes, copy_ns, compute_ns = pipeline.evaluate(batch)
    if staged and any(isinstance(outcome, TooLarge) for outcome in outcomes):
        # Batches that were copied ahead took the memory it needs: free theirs, and try again before refusing it.
        for _, other in staged:
            pipeline.restage(other)
        pipeline.restage(batch)
        outcomes, copy_ns, compute_ns = pipeline.evaluate(batch)
    heartbeat.end()
    fronts.reply(front, Reply(batch.manifest["batch"], copy_ns, compute_ns, texts_of(outcomes)))


def run(
    device: torch.device,
    connection: socket.socket | None,
    listener: socket.socket | None,
    heartbeat: Heartbeat,
    poll_s: float = 0.0,
    lane: Lane | None = None,
    passes: Passes | None = None,
    busy: BusyTime | None = None,
) -> None:
    """Greet each front and serve it."""
    signal.signal(PROBE, heartbeat.answer_probe)

    def greet(front: FrontConnection) -> None:
        hello = {"pid": os.getpid(), "device": str(device), "front": front.number}
        with own_descriptor() as descriptor:
            front.send(Reply(HELLO, 0, 0, [(False, orjson.dumps(hello))]), (heartbeat.fd, *descriptor))

    gc.collect()
    gc.freeze()  # exempts the objects of loaded modules from every full collection
    try:
        if device.type == "cuda":
            assert connection is not None
            pipeline = Pipeline(device)
            serve_ahead(
                FrontConnections(connection, listener, greet, pipeline.pin, pipeline.unpin), pipeline, heartbeat, busy
            )
        else:
            fronts = FrontConnections(connection, listener, greet)
            if connection is None:
                fronts.await_first(COME_S)
            serve(fronts, device, heartbeat, poll_s, lane, passes, busy)
    except RuntimeError as error:
        if not is_broken_device(error):
            raise
        log.critical("%s is broken, this worker ends: %s", device, error)
        os._exit(BROKEN)  # without cleanup, which would wait for the device


def serve_short(listener: socket.socket, passes: Passes | None) -> None:
    """Serve short batches, in a process that was forked from a CPU's worker.

    A fork does not copy threads. One thread is enough for short batches.
    """
    torch.set_num_threads(1)
    run(torch.device("cpu"), None, listener, Heartbeat(), passes=None if passes is None else passes.forked())


def _return_free_memory() -> None:
    """Return free memory to the system, after a large batch: the allocator is tuned to keep it."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def _end_with_the_parent() -> None:
    """Have the kernel kill this process when the front dies, also during a batch: its answer could reach no client.

    Linux sends the signal when the thread that started this process ends; in a front, that is the event loop's thread.
    If the front died before this call, the worker finds its connection closed before the first batch.
    """
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


_LIBC = ctypes.CDLL(None)


def main() -> None:
    """Run until the front closes the connection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--poll-us", type=int, default=0, help="poll for work so long before sleeping, on a CPU")
    parser.add_argument("--compiled", action="store_true", help="use compiled passes, on a CPU")
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of the connection to the front")
    parser.add_argument("--listen", type=int, help="file descriptor of the socket where further fronts connect")
    parser.add_argument("--busy", type=int, help="file descriptor of the memory where the busy time is counted")
    parser.add_argument("--log-level", default="info", help="as the front's")
    parser.add_argument("--log-format", default="auto", help="as the front's")
    arguments = parser.parse_args()
    logs.start(arguments.log_level, arguments.log_format)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when a worker ends
    if arguments.listen is None:  # else fronts that the parent has left finish what they accepted
        _end_with_the_parent()
    device, connection = torch.device(arguments.device), socket.socket(fileno=arguments.socket)
    if (why := unusable(device)) is not None:
        refusal = [(True, orjson.dumps(InternalError(why).to_json()))]
        connection.sendall(encode_reply(Reply(HELLO, 0, 0, refusal)))
        raise SystemExit(UNUSABLE)
    tune_allocator()
    raise_file_limit()  # each slab is one
    torch.set_num_threads(arguments.threads)
    heartbeat = Heartbeat()
    passes = Passes(arguments.threads) if arguments.compiled and arguments.device == "cpu" else None
    if passes is not None:
        passes.prepare(lambda progress: heartbeat.note_compiled(*progress))
    listener = None if arguments.listen is None else socket.socket(fileno=arguments.listen)
    lane = Lane(partial(serve_short, passes=passes))
    busy = None if arguments.busy is None else BusyTime(arguments.busy)
    run(device, connection, listener, heartbeat, arguments.poll_us / 1e6, lane, passes, busy)


if __name__ == "__main__":
    main()
