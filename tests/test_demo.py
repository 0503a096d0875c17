"""The demo, as ``make demo`` runs it, but that its service is forked from a warm process."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from pathlib import Path

import pytest

from lossd.engine import worker_process

DEMO = Path(__file__).parents[1] / "client/examples/digits/train.py"


@pytest.mark.timed
def test_the_demo_learns_to_read_digits(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("train", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "subprocess", worker_process.subprocess)
    monkeypatch.setattr(sys, "argv", [str(DEMO)])
    began_s = time.monotonic()
    demo.main()
    assert time.monotonic() - began_s < 60
    stdout, stderr = capfd.readouterr()
    assert re.fullmatch(r"lossd \S+ is starting …\n", stderr), "no warning"
    accuracy = re.search(r"^accuracy +([\d.]+) *$", stdout, re.MULTILINE)
    assert accuracy
    assert float(accuracy[1]) >= 0.95
    rows = [
        list(map(int, row.replace("·", "0").split()))
        for row in re.findall(r"^\d((?: +(?:\d+|·)){10}) *$", stdout, re.MULTILINE)
    ]
    assert len(rows) == 10
    assert sum(map(sum, rows)) == 450, "every held-out digit is in the confusion matrix"
    assert float(accuracy[1]) == pytest.approx(sum(rows[digit][digit] for digit in range(10)) / 450, abs=1e-6)
    verdict, page = stdout.splitlines()[-2:]
    assert re.match(r"digits-\S+-20-epochs is better than digits-\S+-1-epoch in ", verdict)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#/compare\?run=digits-\S+-1-epoch&run=digits-\S+-20-epochs", page)
