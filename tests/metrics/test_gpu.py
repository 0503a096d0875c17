"""The same metrics on a GPU: every row of the table."""

from __future__ import annotations

import itertools

import pytest
import torch

from metrics.measuring import alike, measure
from metrics.tables import TABLES
from metrics.test_common import batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.task)
def test_a_batch_on_the_gpu_equals_the_cpu(table):
    for weighted, ignoring in itertools.product([False, table.weighted], [False, table.ignored is not None]):
        _, requests, ignore_index = batch(table, 11, weighted=weighted, ignoring=ignoring)
        names = list(table.oracles)
        common = {"activation": table.activation, "ignore_index": ignore_index}
        on_gpu = measure(table.task, requests, names, device="cuda", **common)
        for found, expected in zip(on_gpu, measure(table.task, requests, names, **common), strict=True):
            alike(found, expected)
