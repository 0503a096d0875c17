"""A worker: one process, one device, one batch after the other.

``python -m lossd.engine.worker --device cpu --threads 1 --socket FD``. It reads manifests, evaluates what they name in
the slabs, replies, and ends when the front closes the socket, whatever the front died of.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import mmap
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import torch
from torch import Tensor

from lossd import compiled
from lossd.engine.frames import HELLO, Reply, encode_reply, take_frames
from lossd.evaluation import Batch, evaluate
from lossd.job import Column, Recipe
from lossd_client.errors import Problem

__all__ = ["answer", "main", "tensors_in"]

MAX_FDS = 16
LARGE_BYTES = 64 << 20
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def tensors_in(
    memory: Any, columns: Sequence[Column], offsets: Sequence[int], rows: int, requests: int
) -> dict[str, Tensor]:
    """Tensors over the columns of a slab, nothing copied."""
    tensors = {}
    for column, offset in zip(columns, offsets, strict=True):
        shape = (rows if column.per_row else requests, *column.trailing)
        count = torch.Size(shape).numel()
        tensors[column.name] = torch.frombuffer(memory, dtype=DTYPES[column.dtype], count=count, offset=offset).view(
            shape
        )
    return tensors


def answer(manifest: Mapping[str, Any], memory: Any, device: torch.device) -> Reply:
    """Evaluate the batch a manifest names in the memory of its slab."""
    begin = time.perf_counter_ns()
    recipe = Recipe.parse(manifest["recipe"])
    rows: list[int] = manifest["rows"]
    tensors = tensors_in(memory, recipe.columns, manifest["offsets"], sum(rows), len(rows))
    inputs = {c.name: tensors[c.name] for c in recipe.inputs}
    answers = {c.name: tensors[c.name] for c in recipe.answers}
    outcomes = evaluate(Batch(recipe, rows, manifest["numbers"], inputs, answers, device))
    texts = [
        (True, orjson.dumps(o.to_json())) if isinstance(o, Problem) else (False, orjson.dumps(o)) for o in outcomes
    ]
    return Reply(manifest["batch"], 0, time.perf_counter_ns() - begin, texts)


class _Worker:
    def __init__(self, device: str, connection: socket.socket) -> None:
        self.device = torch.device(device)
        self.connection = connection
        self.slabs: dict[int, mmap.mmap] = {}

    def run(self) -> None:
        if self.device.type == "cuda":
            torch.zeros(1, device=self.device)  # a device that does not work fails here, before the hello
        gc.collect()
        gc.freeze()  # the modules' objects never become garbage: full collections need not walk them
        hello = {"pid": os.getpid(), "device": str(self.device)}
        self._send(Reply(HELLO, 0, 0, [(False, orjson.dumps(hello))]))
        buffer = bytearray()
        fds: list[int] = []
        while True:
            chunk, received, _, _ = socket.recv_fds(self.connection, 1 << 16, MAX_FDS)
            if not chunk:
                return
            fds.extend(received)
            buffer += chunk
            for frame in take_frames(buffer):
                manifest = orjson.loads(frame)
                self._map(manifest, fds)
                reply = answer(manifest, self.slabs[manifest["slab"]], self.device)
                self._send(reply)
                if len(self.slabs[manifest["slab"]]) >= LARGE_BYTES:
                    _return_free_memory()

    def _map(self, manifest: Mapping[str, Any], fds: list[int]) -> None:
        for slab in manifest.get("closed", ()):
            self.slabs.pop(slab, None)
        if size := manifest.get("size"):
            fd = fds.pop(0)
            self.slabs[manifest["slab"]] = mmap.mmap(fd, size)
            os.close(fd)

    def _send(self, reply: Reply) -> None:
        self.connection.sendall(encode_reply(reply))


def _return_free_memory() -> None:
    """After a large batch, give its temporaries back to the system: the allocator is tuned to keep them."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


_LIBC = ctypes.CDLL(None)


def main() -> None:
    """Run until the front closes the connection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="compile the losses asked for most, on a CPU")
    parser.add_argument("--socket", type=int, required=True, help="file descriptor of the connection to the front")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when a worker ends
    torch.set_num_threads(arguments.threads)
    if arguments.compiled and arguments.device == "cpu":
        compiled.load()
    connection = socket.socket(fileno=arguments.socket)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the front is gone
        _Worker(arguments.device, connection).run()


if __name__ == "__main__":
    main()
