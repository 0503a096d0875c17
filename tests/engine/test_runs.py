"""Batches of a run in the engine: they share messages as evaluations do, on a CPU and on a GPU."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
import torch

import lossd
from engine.test_pipeline import StandIn
from lossd.arrangement import arrange_one
from lossd.configuration.settings import Settings
from lossd.engine.engine import Engine
from lossd.engine.inline import InlineEngine
from lossd.engine.pipeline import Pipeline
from lossd.engine.process import ProcessEngine
from lossd.engine.result import Result
from lossd.job import Job
from lossd.runs.counting import counting_job, result_job
from lossd.runs.definition import RunDocument
from lossd.runs.report import BatchReport
from lossd.runs.state import RunState
from lossd_client.errors import Problem
from lossd_client.wire import Tensor

ROWS = 16
FOCAL = {"loss": {"name": "focal"}, "metrics": ["default", "log_loss"], "identity": "position"}


def drawn(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"prediction": rng.normal(size=(ROWS, 5)).astype(np.float32), "target": rng.integers(0, 5, ROWS)}


def job_of(document: RunDocument, inputs: dict[str, Any], first: int) -> tuple[Job, dict[str, memoryview]]:
    tensors = {name: Tensor.of(array) for name, array in inputs.items()}
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    job = counting_job(document.plan, document.definition, layout, first=first)
    return job, {name: tensor.data for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", [InlineEngine, ProcessEngine])
def test_batches_of_a_run_share_messages_and_fail_alone(kind: type[Engine]) -> None:
    document = RunDocument.parse(FOCAL)
    batches = [drawn(seed) for seed in range(8)]
    batches[3] = {**batches[3], "target": batches[3]["target"] + 9}
    whole = lossd.Run(loss="focal", metrics=["default", "log_loss"], identity="position")
    for number, inputs in enumerate(batches):
        if number != 3:
            whole.add(inputs=inputs, first=number * ROWS)

    async def outcome(engine: Engine, job: Job, tensors: dict[str, memoryview]) -> tuple[bytes, int]:
        result: Result = await engine.submit(job, tensors, time.monotonic() + 60)
        try:
            return result.text, result.batch_requests
        finally:
            result.release()

    async def answers() -> tuple[list[Any], bytes]:
        engine = kind(Settings(device="cpu", threads=1, compiled=False))
        await engine.start()
        jobs = [job_of(document, inputs, number * ROWS) for number, inputs in enumerate(batches)]
        found = await asyncio.gather(*(outcome(engine, *job) for job in jobs), return_exceptions=True)
        state = whole.state()
        text, _ = await outcome(
            engine, result_job(state, document.plan, document.definition), {"state": memoryview(state)}
        )
        await engine.stop()
        return found, text

    found, result = asyncio.run(answers())
    assert isinstance(found.pop(3), Problem)
    assert max(shared for _, shared in found) > 1
    state = RunState(document.definition)
    for text, _ in found:
        state.merge(RunState.decode(zlib.decompress(BatchReport.decode(text).packed)))
    assert state.encode() == whole.state()
    assert orjson.loads(result) == whole.result().to_dict()


def through(pipeline: Pipeline, inputs: dict[str, Any]) -> RunState:
    document = RunDocument.parse(FOCAL)
    job, tensors = job_of(document, inputs, 32)
    arrangement, memory = arrange_one(job, tensors)
    numbers = orjson.loads(orjson.dumps([job.numbers]))
    manifest = {"recipe": job.recipe.text, "rows": [job.rows], "numbers": numbers, "offsets": arrangement.offsets}
    [outcome], _, _ = pipeline.evaluate(pipeline.stage(manifest, memory))  # type: ignore[arg-type]
    assert isinstance(outcome, bytes), outcome
    return RunState.decode(zlib.decompress(BatchReport.decode(outcome).packed))


def expected(inputs: dict[str, Any]) -> lossd.Run:
    run = lossd.Run(loss="focal", metrics=["default", "log_loss"], identity="position")
    run.add(inputs=inputs, first=32)
    return run


def test_a_batch_of_a_run_goes_through_the_pipeline_of_a_gpu() -> None:
    inputs = drawn(1)
    state = through(Pipeline(torch.device("cpu"), StandIn()), inputs)
    assert state.encode() == expected(inputs).state()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_batch_of_a_run_has_the_same_rows_targets_and_counts() -> None:
    inputs = drawn(1)
    state, run = through(Pipeline(torch.device("cuda:0")), inputs), expected(inputs)
    found, on_cpu = lossd.Run.from_state(state.encode()).result(), run.result()
    assert (found.counted, found.targets) == (on_cpu.counted, on_cpu.targets)
    assert found.metrics.confusion_matrix == on_cpu.metrics.confusion_matrix
    assert found.loss == pytest.approx(on_cpu.loss, rel=1e-6)
