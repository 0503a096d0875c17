"""The demo, run as ``make demo`` runs it."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from lossd.engine import worker_process

DEMO = Path(__file__).parents[1] / "client/examples/digits/train.py"


@pytest.mark.timed
def test_the_demo_learns_to_read_digits() -> None:
    began_s = time.monotonic()
    run = worker_process.subprocess.run([sys.executable, str(DEMO)], capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - began_s < 60
    assert re.fullmatch(r"lossd \S+ is starting …\n", run.stderr), "no warning"
    accuracy = re.search(r"^accuracy +([\d.]+) *$", run.stdout, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) >= 0.95
    rows = [
        list(map(int, row.replace("·", "0").split()))
        for row in re.findall(r"^\d((?: +(?:\d+|·)){10}) *$", run.stdout, re.MULTILINE)
    ]
    assert len(rows) == 10
    assert sum(map(sum, rows)) == 450, "every held-out digit is in the confusion matrix"
    assert float(accuracy[1]) == pytest.approx(sum(rows[digit][digit] for digit in range(10)) / 450, abs=1e-6)
    verdict, page = run.stdout.splitlines()[-2:]
    assert re.match(r"digits-\S+-20-epochs is better than digits-\S+-1-epoch in ", verdict)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#/compare\?run=digits-\S+-1-epoch&run=digits-\S+-20-epochs", page)
