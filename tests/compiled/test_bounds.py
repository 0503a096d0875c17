"""No kernel reads or writes beyond its arrays. All tests of this folder see it of the arrays that kernels are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

import evaluating
from compiled import test_multivariate, test_passes
from compiled.guards import Guards
from evaluating import COMPILED, together
from lossd.compiled.compile_order import KERNELS
from lossd.compiled.kernels import Kernel, aot, kernel_of
from lossd.compiled.passes import Passes
from lossd.compiled.store import CodeStore
from losses.test_values import ROWS
from metrics import test_classes
from runs import test_fingerprint, test_groups, test_totals

TESTS: tuple[Callable[..., None], ...] = (
    test_passes.test_class_scores_answer_as_the_general_way,
    test_passes.test_dense_scores_answer_as_the_general_way,
    test_passes.test_elements_answer_as_the_general_way,
    test_passes.test_regions_answer_as_the_general_way,
    test_passes.test_boxes_answer_as_the_general_way,
    test_passes.test_what_a_pass_doubts_is_answered_the_general_way,
    test_passes.test_what_a_pass_counts_is_what_metrics_count,
    test_passes.test_kernels_count_extreme_scores_as_the_general_way,
    test_multivariate.test_a_batch_answers_as_the_general_way_and_as_each_request_alone,
    test_multivariate.test_long_and_short_lists_are_ranked,
    test_classes.test_a_kernel_finds_the_same_most_likely_class,
    test_classes.test_a_kernel_counts_combinations_as_numpy_does,
    test_fingerprint.test_kernels_hash_wide_rows_in_pieces_as_numpy_does,
    test_groups.test_the_group_is_splitmix64_of_the_key,
    test_totals.test_sums_that_are_split_have_the_bytes_of_each_part,
)
"""Tests whose tensors fill the arrays that kernels make for themselves."""


def arguments_of(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """As many sets of arguments, but for fixtures, as its longest table has rows; each row of each table is in one.

    pytest runs it with all combinations, beside guards for the arrays that kernels are given.
    """
    axes = []
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "parametrize":
            names, values = mark.args
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
            axes.append([dict(zip(names, [v] if len(names) == 1 else v, strict=True)) for v in values])
    for turn in range(max(map(len, axes), default=1)):
        yield {name: value for axis in axes for name, value in axis[turn % len(axis)].items()}


def reload(kernel: Kernel) -> None:
    """Link a kernel's stored code anew."""
    code = CodeStore().read(kernel.name)
    assert code is not None, f"the code of {kernel.name} is not stored"
    kernel.function._make_finalizer()()
    kernel.function._reset_overloads()
    kernel.load(code)


def called_beside_guards() -> set[str]:
    """Call kernels that make their own arrays beside guards, too. Return their names."""
    found = Guards()
    found.take_scratch()
    for kernel in KERNELS:
        reload(kernel)
    passes = evaluating.passes = Passes()
    passes.load()
    with found.watch():
        for case, parameters in (row.values for row in ROWS):
            if case.name in COMPILED:
                request = {"loss": {"name": case.name, **parameters}, "outputs": ["loss", "gradient"]}
                together([request] * 2, [case.inputs(parameters)] * 2)
        for test in TESTS:
            for arguments in arguments_of(test):
                with pytest.MonkeyPatch.context() as patch:
                    fixtures = {"passes": passes, "monkeypatch": patch}
                    names = test.__code__.co_varnames[: test.__code__.co_argcount]
                    test(**arguments, **{name: fixtures[name] for name in names if name in fixtures})
    return found.called


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # the child needs no other thread
def test_no_kernel_reads_or_writes_beyond_its_arrays_or_those_that_it_makes(passes: Passes) -> None:
    """In a forked process, because code that is loaded cannot be linked to another allocator in this one."""
    with ProcessPoolExecutor(1, get_context("fork")) as forked:
        assert forked.submit(called_beside_guards).result() == {kernel.name for kernel in KERNELS}


@aot("float64(float64[::1], int64, float64[::1], int64, int64, int64)")
def broken(read: Any, at: int, written: Any, to: int, size: int, beyond: int) -> float:
    """Read and write where it is told, and add a number of an array of its own."""
    scratch = np.empty(size)
    scratch[:] = 1.0
    written[to] = 7.0
    return read[np.uint64(at)] + scratch[np.uint64(beyond)]


FAULTS: Mapping[str, tuple[int, int, int]] = {
    r"read at byte \+0 from its end": (5, 0, 0),
    r"read at byte \+8000 from its end": (1005, 0, 0),
    r"read at byte -8 from its beginning": (-1, 0, 0),
    r"written at byte \+0 from its end": (0, 3, 0),
    r"written at byte -16 from its beginning": (0, -5, 0),
    r"an array of 48 bytes that it makes at byte \+0 from its end": (0, 0, 6),
    r"an array of 48 bytes that it makes at byte -8 from its beginning": (0, 0, -1),
}


def test_a_kernel_that_leaves_an_array_is_noticed() -> None:
    found, kernel, read, written = Guards(), kernel_of(broken), np.arange(5.0), np.zeros(3)
    found.take_scratch()
    try:
        kernel.compile()
    finally:
        found.give_scratch_back()
    with found.watch():
        assert broken(read, 4, written, 2, 6, 5) == 5
        assert written.tolist() == [0, 0, 7]
        for fault, (at, to, beyond) in FAULTS.items():
            with pytest.raises(pytest.fail.Exception, match=f"^broken leaves {fault}$"):
                broken(read, at, written, to, 6, beyond)
