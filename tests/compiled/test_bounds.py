"""Numba checks no index unless it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = ("tests/compiled/test_passes.py", "tests/compiled/test_multivariate.py")


@pytest.mark.timeout(900)
def test_no_pass_reads_or_writes_beyond_its_arrays(tmp_path: Path) -> None:
    """The tests of the passes once more, compiled so that an index out of bounds is an error.

    Without LLVM's optimisation, which changes no index, the passes are compiled in half the time. Indices are the same
    in both dtypes, so that float32 shows them all, and on any number of threads, which share parts of a fixed size.
    """
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "0", "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("LOSSD_CACHE_DIR", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    repeated = ("float64", "(dense_scores and focal)", "(dense_scores and -3])")  # focal as the cross-entropy
    of_no_index = ("exact_to_two_units", "bounded_in_bytes", "whatever_the_numbers")
    command += ["-k", " and ".join(f"not {these}" for these in (*repeated, *of_no_index))]
    run = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
