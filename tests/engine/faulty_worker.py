"""A worker with faults: what it does with a batch depends on how many rows the batch's first request has.

The environment has the faults as JSON, ``{"63": "hang"}``. One that starts with ``once`` happens to the first worker
that meets it, which leaves a file beside.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from pathlib import Path

import torch

from lossd.compiled.passes import Passes
from lossd.engine import worker
from lossd.evaluation import evaluate as evaluation
from lossd.evaluation.batch import TensorBatch

FAULTS = {int(rows): fault for rows, fault in json.loads(os.environ["LOSSD_TEST_FAULTS"]).items()}
PLACE = Path(os.environ["LOSSD_TEST_PLACE"])
FITS = 64

_evaluated = evaluation._evaluated


def hang() -> None:
    """Wait for what never comes, where Python answers no signal: for a mutex that is held, as a zeroed one is once."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def plod(seconds: float) -> None:
    """Many operations, each a short one; between them another process has the core."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(10).cumsum(0)
        time.sleep(0.002)


def with_faults(batch: TensorBatch, passes: Passes | None) -> object:
    with (PLACE / "evaluated").open("a") as log:
        log.write(f"{list(batch.rows)}\n")
    fault = FAULTS.get(batch.rows[0], "")
    if fault.startswith("once "):
        try:
            (PLACE / f"met-{batch.rows[0]}").touch(exist_ok=False)
        except FileExistsError:
            fault = ""
    match fault.removeprefix("once "):
        case "hang":
            hang()
        case "plod":
            plod(2.5)
        case "plod on":
            plod(600)
        case "crash":
            os.abort()
        case "break":
            raise RuntimeError("CUDA error: device-side assert triggered")
        case "out of memory" if sum(batch.rows) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 9 MiB")
    return _evaluated(batch, passes)


evaluation._evaluated = with_faults
worker.main()
