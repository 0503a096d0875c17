"""Tables against all the values: whole ones to the last bit, cut ones within their bound, in any order and split."""

from __future__ import annotations

import itertools
import math
import struct
import time
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from lossd.exact.rationals import rounded
from lossd.exact.steps import Steps, best_step, pr_points, precision_of_positives, roc_points
from lossd.exact.sums import total
from lossd.exact.table import BITS, Table, between
from lossd.exact.table import ROWS as DEFAULT
from lossd.metrics.ranking import Ranking
from lossd.metrics.ranking import steps as steps_of

Array = np.ndarray[Any, Any]

ONE = 1.0
AFTER_ONE = np.nextafter(1.0, 2)
SMALLEST, LARGEST = 5e-324, np.finfo(float).max

# Few different values, so that many are equal or neighbours, and the extremes.
NEAR = st.sampled_from(
    [
        0.0,
        -0.0,
        ONE,
        AFTER_ONE,
        -ONE,
        -AFTER_ONE,
        SMALLEST,
        -SMALLEST,
        LARGEST,
        -LARGEST,
        math.inf,
        -math.inf,
        0.5,
        0.75,
    ]
)
SCORES = st.one_of(NEAR, st.floats(allow_nan=False), st.floats(allow_nan=False, width=16))
ROWS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=40)
WEIGHTS = st.one_of(st.sampled_from([0.0, 1.0, 0.1, 1e-300, 1e300]), st.floats(0, 10))
WEIGHTED = st.lists(st.tuples(SCORES, st.booleans(), WEIGHTS), min_size=1, max_size=30)
LIMITS = st.sampled_from([1, 2, 3, 5, 8, 20, 1 << 20])


def table_of(rows: Any, limit: int = 1 << 20, *, kinds: int = 2, weighted: bool = False) -> Table:
    table = Table(kinds, weighted=weighted, limit=limit)
    if len(rows):
        table.add(*(list(column) for column in zip(*rows, strict=True)))
    return table


def pairs_won(rows: Any) -> tuple[Fraction, Fraction]:
    """Pairs of a positive and a negative in the right order, ties half; and all. Brute force, weighted."""
    won = every = Fraction()
    for (score, positive, *w), (other, other_positive, *v) in itertools.product(rows, rows):
        if positive and not other_positive:
            weight = math.prod(map(Fraction, [*w, *v]), start=Fraction(1))
            every += weight
            won += weight * (Fraction(1, 2) if score == other else int(score > other))
    return won, every


def precision_at_positives(rows: Any) -> Fraction | None:
    """The mean precision at each positive, by definition, weighted."""
    found = every = Fraction()
    for score, positive, *w in rows:
        if positive and (weight := Fraction(w[0]) if w else Fraction(1)):
            above = [(p, Fraction(v[0]) if v else Fraction(1)) for s, p, *v in rows if s >= score]
            found += weight * sum(v for p, v in above if p) / sum(v for _, v in above)
            every += weight
    return found / every if every else None


# The answers


@given(ROWS, LIMITS)
def test_auroc_is_within_its_bound(rows: Any, limit: int) -> None:
    area = table_of(rows, limit).auroc()
    won, every = pairs_won(rows)
    if not every:
        assert area is None
        return
    assert area is not None
    if area.bits == BITS:
        assert [area.value, area.within] == [rounded(won / every), 0.0]
    assert abs(Fraction(area.value) - won / every) <= Fraction(area.within) + (area.bits == BITS) * Fraction(1, 2**53)


@given(ROWS, LIMITS)
def test_average_precision_is_within_its_bound(rows: Any, limit: int) -> None:
    area, expected = table_of(rows, limit).average_precision(), precision_at_positives(rows)
    if expected is None:
        assert area is None
        return
    assert area is not None
    assert abs(Fraction(area.value) - expected) <= Fraction(area.within) + (area.bits == BITS) * Fraction(1, 2**50)


@given(rows=WEIGHTED, limit=LIMITS)
@example(rows=[(0.0, False, 1e300), (1.0, True, 1e-300)], limit=1)
@example(rows=[(0.0, True, 1.0), (1.0, False, 2.225073858507203e-309)], limit=1)
def test_weighted_areas_are_within_their_bounds(rows: Any, limit: int) -> None:
    """Weights of 1e300 beside weights of 1e-300 too: their sums are exact."""
    table = table_of(rows, limit, weighted=True)
    auroc, precision = table.auroc(), table.average_precision()
    (won, every), mean = pairs_won(rows), precision_at_positives(rows)
    assert (auroc is None) == (every == 0)
    assert (precision is None) == (mean is None)
    rounding = table.whole * Fraction(1, 2**50)
    if auroc is not None:
        assert abs(Fraction(auroc.value) - won / every) <= Fraction(auroc.within) + rounding
    if precision is not None and mean is not None:
        assert abs(Fraction(precision.value) - mean) <= Fraction(precision.within) + rounding


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_whole_tables_equal_sklearn(weighted: bool, dtype: str) -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(3000) < 0.3
    scores = (generator.standard_normal(3000) + positive).astype(dtype)
    weights = generator.random(3000) if weighted else None
    table = Table(weighted=weighted)
    table.add(scores, positive, weights)
    area, precision = table.auroc(), table.average_precision()
    assert area is not None
    assert precision is not None
    assert table.rows == len(np.unique(scores))
    assert area.value == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights), rel=1e-14)
    expected = average_precision_score(positive, scores, sample_weight=weights)
    assert precision.value == pytest.approx(expected, rel=1e-14)


def test_bounds_shrink_with_the_limit() -> None:
    """A bound that is far wider than the error would be of no use."""
    generator = np.random.default_rng(1)
    positive = generator.random(50_000) < 0.3
    scores = generator.standard_normal(50_000) + positive
    for limit, least in ((1 << 14, 2e-3), (1 << 10, 2e-2)):
        table = Table(limit=limit)
        table.add(scores, positive)
        area, precision = table.auroc(), table.average_precision()
        assert area is not None
        assert precision is not None
        assert limit / 4 < table.rows <= limit
        assert abs(area.value - roc_auc_score(positive, scores)) < area.within < least
        assert abs(precision.value - average_precision_score(positive, scores)) < precision.within < least


@given(ROWS)
def test_whole_tables_have_the_steps_of_all_scores(rows: Any) -> None:
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    s = table_of(rows).steps()
    expected = steps_of(Ranking.of(*(torch.from_numpy(a)[:, None, None] for a in (scores, positive)), None, None))
    np.testing.assert_array_equal(s.thresholds, expected.thresholds)
    np.testing.assert_array_equal(np.signbit(s.thresholds), np.signbit(expected.thresholds))  # one zero
    np.testing.assert_array_equal(s.tp, expected.tp)
    np.testing.assert_array_equal(s.fp, expected.fp)
    assert s.tp.dtype == np.int64
    assert s.highest is None


@given(ROWS, LIMITS)
def test_every_step_of_a_cut_table_is_a_step_of_the_true_curve(rows: Any, limit: int) -> None:
    s = table_of(rows, limit).steps()
    for step, threshold in enumerate(s.thresholds.tolist()):
        assert s.tp[step] == sum(positive for score, positive in rows if score >= threshold)
        assert s.fp[step] == sum(not positive for score, positive in rows if score >= threshold)
        below = [score for score, _ in rows if score < threshold]
        if step + 1 < len(s.thresholds):
            lowest, highest = s.around(step)
            assert lowest == threshold > highest >= max(below)
        else:
            assert not below
            assert s.around(step).tolist() == [threshold]


@given(WEIGHTED)
def test_weights_of_1_answer_as_no_weights(rows: Any) -> None:
    plain = table_of([row[:2] for row in rows])
    weighted = table_of([(*row[:2], 1.0) for row in rows], weighted=True)
    s, w = plain.steps(), weighted.steps()
    assert plain.auroc() == weighted.auroc()
    assert plain.average_precision() == weighted.average_precision()
    for points in (roc_points, pr_points):
        for column, other in zip(points(s, 5) or (), points(w, 5) or (), strict=True):
            np.testing.assert_array_equal(column, other)
    assert best_step(s) == best_step(w)


def test_nan_scores_have_no_rank() -> None:
    for weights in (None, [1.0, 2.0, 1.0]):
        table = Table(weighted=weights is not None)
        table.add([math.nan, 1.0, 0.0], [True, True, False], weights)
        s, area, precision = table.steps(), table.auroc(), table.average_precision()
        assert s.unranked
        assert (s.positives > 0, s.negatives > 0) == (True, True)
        assert area is not None
        assert precision is not None
        assert math.isnan(area.value)
        assert math.isnan(precision.value)
        assert (roc_points(s, 9), pr_points(s, 9), best_step(s)) == (None, None, None)
        assert Table.decode(table.encode(), like=table) == table


def test_one_kind_alone_is_undefined() -> None:
    for label in (0, 1):
        table = table_of([(1.0, label), (math.nan, label)])
        assert table.auroc() is None
        assert (table.average_precision() is None) == (label == 0)
    assert (Table().auroc(), Table().average_precision(), best_step(Table().steps())) == (None, None, None)


def test_scores_of_weight_0_are_left_out() -> None:
    rows = [(1.0, True, 1.0), (0.0, False, 2.0)]
    assert table_of([*rows, (math.nan, True, 0.0), (3.0, False, 0.0)], weighted=True) == table_of(rows, weighted=True)


def test_counts_beyond_int64_products() -> None:
    """3·2**31 positives and as many negatives: twice their pairs are more than an int64 holds."""
    table = table_of([(2.0, True), (1.0, False), (1.0, True), (0.0, False)])
    for _ in range(31):
        table.merge(table)
    area = table.auroc()
    assert area is not None
    assert area.value == 0.875


# Cells


@given(ROWS, LIMITS)
def test_a_table_keeps_the_most_bits_that_fit(rows: Any, limit: int) -> None:
    """By definition: all values as integers of their order, cut to b bits, for each b."""
    table = table_of(rows, limit)
    keys = []
    for score, _ in rows:
        (bits,) = struct.unpack(">Q", struct.pack(">d", score + 0.0))
        keys.append(bits ^ (1 << 63) if bits < 1 << 63 else (1 << 64) - 1 - bits)
    fits = [b for b in range(BITS + 1) if len({key >> BITS - b for key in keys}) <= limit]
    assert table.bits == max(fits)
    assert table.rows == len({key >> BITS - table.bits for key in keys})


@pytest.mark.parametrize("limit", [1, 3, 1 << 20])
def test_zeros_of_both_signs_are_one_value(limit: int) -> None:
    table = table_of([(0.0, True), (-0.0, False)], limit)
    assert table.rows == 1
    assert table.whole
    assert math.copysign(1, table.steps().thresholds[0]) == 1


def test_two_clusters_one_unit_apart() -> None:
    rows = [(ONE, False)] * 50 + [(AFTER_ONE, True)] * 50
    area = table_of(rows, 2).auroc()
    assert area is not None
    assert (area.value, area.within, area.bits) == (1.0, 0.0, 64)
    area = table_of(rows, 1).auroc()
    assert area is not None
    assert (area.value, area.bits) == (0.5, 63)
    assert area.within >= 0.5
    third = table_of([*rows, (2.0, True)], 2)
    assert (third.rows, third.bits) == (2, 63)


def combined(parts: list[Table], choose: Any) -> Table:
    while len(parts) > 1:
        first = parts.pop(choose(len(parts)))
        first.merge(parts.pop(choose(len(parts))))
        parts.append(first)
    return parts[0]


@given(WEIGHTED, LIMITS, st.booleans(), st.integers(1, 2), st.randoms(use_true_random=False))
def test_order_split_and_merging_do_not_matter(rows: Any, limit: int, weighted: bool, kinds: int, random: Any) -> None:
    """Equal bytes, from any order, from parts that were cut early, and after a journey as bytes."""
    rows = [(*row, math.nan)[-1:] + row[1:] if random.random() < 0.1 else row for row in rows]

    def table(some: Any) -> Table:
        made = Table(kinds, weighted=weighted, limit=limit)
        if some:
            values, labels, weights = (list(column) for column in zip(*some, strict=True))
            made.add(values, labels if kinds == 2 else None, weights if weighted else None)
        return made

    expected = table(rows).encode()
    rows = random.sample(rows, len(rows))
    cuts = sorted(random.randrange(len(rows) + 1) for _ in range(random.randrange(5)))
    parts = [table(rows[first:last]) for first, last in itertools.pairwise([0, *cuts, len(rows)])]
    for part in parts[::2]:
        part.steps() if kinds == 2 else part.quantiles([0.5])  # reading changes nothing
    parts = [Table.decode(part.encode(), like=part) for part in parts]
    assert combined(parts, random.randrange).encode() == expected


def test_tables_are_cut_while_values_arrive() -> None:
    """Many batches, which are sorted into the cells now and then, give what one batch gives."""
    generator = np.random.default_rng(2)
    scores = generator.standard_normal(60_000)
    scores[::7] = scores[0]
    positive = generator.random(60_000) < 0.5
    for weights in (None, generator.random(60_000)):
        whole, parts = (Table(weighted=weights is not None, limit=3000) for _ in range(2))
        whole.add(scores, positive, weights)
        for these in np.array_split(np.argsort(scores), 37):
            parts.add(scores[these], positive[these], None if weights is None else weights[these])
        assert parts == whole
        assert parts.rows <= 3000


def test_memory_depends_on_the_limit_alone() -> None:
    """At the default limit as much is less than 300 MB, however many scores there are."""
    generator = np.random.default_rng(5)
    limit, peaks = 1 << 13, []
    for batches in (30, 120):
        tracemalloc.start()
        table = Table(limit=limit)
        for _ in range(batches):
            table.add(generator.standard_normal(4096), generator.random(4096) < 0.5)
        table.auroc()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 300e6 * limit / DEFAULT
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.timed
def test_adding_to_a_cut_table_takes_less_than_sorting_its_values() -> None:
    """A stable sort uses no vector instructions: it takes about as long as a binary search for each value."""
    generator = np.random.default_rng(6)
    size = 1 << 21
    values, positive = generator.standard_normal(size, np.float32), generator.random(size) < 0.4

    def seconds(function: Callable[[], Any]) -> float:
        begin = time.process_time()
        function()
        return time.process_time() - begin

    def table() -> None:
        table = Table(limit=1 << 18)
        for part in np.array_split(np.arange(size), 32):
            table.add(values[part], positive[part])
        assert table.bits < BITS

    added, ordered = (
        min(seconds(function) for _ in range(3))
        for function in (table, lambda: np.sort(values.astype(float), kind="stable"))
    )
    assert added < 0.68 * ordered


def test_pooled_tables_count_all_columns() -> None:
    columns = [[(0.1, True), (0.2, False)], [(0.2, True), (0.3, False)], []]
    tables = [table_of(column) for column in columns]
    before = [table.encode() for table in tables]
    assert Table.pooled(tables) == table_of([*columns[0], *columns[1]])
    assert Table.pooled(tables, limit=2).rows <= 2
    assert [table.encode() for table in tables] == before


def test_added_arrays_may_change_afterwards() -> None:
    for weights in (None, np.ones(3)):
        table = Table(1, weighted=weights is not None)
        values = np.arange(3.0)
        table.add(values, None, weights)
        values[:] = 7
        if weights is not None:
            weights[:] = 7
        assert table == table_of(
            [(v, 0, 1.0)[: 1 + 2 * (weights is not None)] for v in range(3)], kinds=1, weighted=weights is not None
        )


# Quantiles


@given(st.lists(SCORES, min_size=1, max_size=30), LIMITS, st.lists(st.floats(0, 1), max_size=4))
@example([0.0, 1.0, np.nextafter(1, 2), -1.0, np.nextafter(-1, -2), np.finfo(float).max], 5, [])
def test_quantiles_are_between_their_ends(values: list[float], limit: int, more: list[float]) -> None:
    levels = [0.0, 0.1, 0.5, 1.0, *more]
    table = Table(1, limit=limit)
    table.add(values)
    found = table.quantiles(levels)
    assert found is not None
    ordered, place = np.sort(np.array(values) + 0.0), np.array(levels) * (len(values) - 1)
    low, high = ordered[np.floor(place).astype(int)], ordered[np.ceil(place).astype(int)]
    expected = between(low, high, place % 1)
    if table.whole:
        np.testing.assert_array_equal(found, [expected, expected])
    else:
        assert (found[0] <= expected).all()
        assert (expected <= found[1]).all()


def test_quantiles_equal_numpy() -> None:
    values = np.random.default_rng(3).standard_normal(1001)
    levels = [0, 0.05, 0.3, 0.5, 0.999, 1]
    table = Table(1)
    table.add(values)
    found = table.quantiles(levels)
    assert found is not None
    for side in found:
        np.testing.assert_allclose(side, np.quantile(values, levels), rtol=1e-15)


def test_weighted_quantiles_equal_numpy() -> None:
    generator = np.random.default_rng(4)
    values, weights = generator.standard_normal(1001), generator.random(1001)
    levels = [0, 0.05, 0.3, 0.5, 0.999, 1]
    table = Table(1, weighted=True)
    table.add(values, None, weights)
    expected = np.quantile(values, levels, weights=weights, method="inverted_cdf")
    np.testing.assert_array_equal(table.quantiles(levels), [expected] * 2)


def test_weighted_quantiles_of_equal_shares() -> None:
    """Ten values of one tenth: the first reaches 0.1, the third 0.3, whatever the weight of each."""
    for weight in (0.1, 1.0, 3e-5):
        table = table_of([(float(k), 0, weight) for k in range(1, 11)], kinds=1, weighted=True)
        assert np.array(table.quantiles([0, 0.1, 0.3, 0.7, 1])).tolist() == [[1, 1, 3, 7, 10]] * 2


def test_quantiles_without_an_answer() -> None:
    assert Table(1).quantiles([0.5]) is None
    assert Table(1, weighted=True).quantiles([0.5]) is None
    for weighted in (False, True):
        table = table_of(
            [(1.0, 0, 1.0)[: 1 + 2 * weighted], (math.nan, 0, 1.0)[: 1 + 2 * weighted]], kinds=1, weighted=weighted
        )
        found = table.quantiles([0.5])
        assert found is not None
        assert np.isnan(found).all()


# Average precision is a sum that no library orders


@given(ROWS, st.randoms(use_true_random=False))
def test_average_precision_does_not_depend_on_how_it_is_summed(rows: Any, random: Any) -> None:
    s = table_of(rows).steps()
    value, defined = precision_of_positives(s)
    if not defined:
        return
    found = np.diff(s.tp, prepend=0) * (s.tp / (s.tp + s.fp))
    assert value == total(random.sample(found.tolist(), len(found))) / s.positives


def test_average_precision_of_a_perfect_ranking_is_1() -> None:
    for positives in (3, 7, 49, 1000):
        s = Steps(np.arange(positives, 0, -1.0), np.arange(1, positives + 1), np.zeros(positives, int))
        assert precision_of_positives(s) == (1.0, True)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "weighted", "problem"),
    [
        (([1.0],), False, "of which of 2 kinds"),
        (([1.0], [True, False]), False, "labels must be 1 integers from 0 to 1"),
        (([1.0], [2]), False, "labels must be"),
        (([1.0], [0.5]), False, "labels must be"),
        (([1.0], [1]), True, "weights must be given"),
        (([1.0], [1], [1.0]), False, "without weights"),
        (([1.0], [1], [-1.0]), True, "none below 0"),
        (([1.0], [1], [math.nan]), True, "none below 0"),
        (([1.0], [1], [math.inf]), True, "none below 0"),
        (([1.0], [1], [1.0, 2.0]), True, "weights must be 1"),
    ],
)
def test_wrong_labels_and_weights_are_refused(arguments: Any, weighted: bool, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Table(weighted=weighted).add(*arguments)


def test_other_tables_do_not_merge() -> None:
    for other in (Table(1), Table(weighted=True), Table(limit=7)):
        with pytest.raises(ValueError, match="tables differ"):
            Table().merge(other)
        with pytest.raises(ValueError, match="tables differ"):
            Table.decode(other.encode(), like=Table())


LIKE = Table(limit=10)
GOOD = table_of([(1.0, True), (2.0, False), (math.nan, True)], 10).encode()


def written(keys: list[int], counts: list[int], *, bits: int = 64, width: str = "B", rows: int | None = None) -> bytes:
    size = struct.calcsize(width)
    head = struct.pack("<4sIBBBBIQ", b"tabl", 1, 2, 0, bits, size, 10, len(keys) if rows is None else rows)
    return head + struct.pack(f"<{len(keys)}Q", *keys) + struct.pack(f"<{len(counts)}{width}", *counts)


K1, K2 = 0xBFF << 52, 3 << 62  # of 1 and of 2


def test_the_form_is_the_documented_one() -> None:
    assert written([K1, K2], [0, 1, 1, 0, 0, 1]) == GOOD


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "at least"),
        (GOOD[:-1], "other than"),
        (GOOD + b"\0", "other than"),
        (b"what" + GOOD[4:], "no table of version 1"),
        (written([], [0, 0], rows=11), "no table has 11 cells"),
        (written([], [0, 0], rows=5), "no table has 5 cells"),
        (written([], [0, 0], rows=1 << 60), "no table has"),
        (written([], [0, 0], bits=65), "of 65 bits"),
        (written([K1], [0, 0, 0, 0]), "a cell of nothing"),
        (written([K1], [0, 1, 0, 0], width="I"), "shortest"),
        (written([K1], [0, 1 << 63, 0, 0], width="Q"), "of less|more values"),
        (written([K1], [0, 1 << 61, 0, 0], width="Q"), "more values"),
        (written([K2, K1], [0, 1, 0, 1, 0, 0]), "not in order"),
        (written([K1, K1], [0, 1, 0, 1, 0, 0]), "not in order"),
        (written([0], [0, 1, 0, 0]), "not of numbers"),
        (written([(1 << 64) - 1], [0, 1, 0, 0]), "not of numbers"),
        (written([(1 << 63) - 1], [0, 1, 0, 0]), "not of numbers"),  # -0
        (written([K1], [0, 1, 0, 0], bits=3), "not of numbers of its bits"),
    ],
)
def test_bytes_of_another_form_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Table.decode(data, like=LIKE)


@given(st.binary(max_size=60), st.integers(0, 48), st.booleans())
def test_any_bytes_are_read_or_refused(noise: bytes, start: int, weighted: bool) -> None:
    like = Table(weighted=weighted, limit=10)
    good = table_of([(1.0, True, 2.0), (3.0, False, 1e9)], 10, weighted=True).encode() if weighted else GOOD
    data = good[: start * (1 + weighted)] + noise
    try:
        table = Table.decode(data, like=like)
    except ValueError:
        return
    assert table.encode() == data
    table.auroc()
    table.average_precision()


def test_a_weighted_table_of_bytes_has_weights_above_0() -> None:
    table = table_of([(1.0, True, 2.0)], 10, weighted=True)
    assert Table.decode(table.encode(), like=table) == table
    data = bytearray(table.encode())
    data[-1] ^= 0x80  # the only digit, below 0
    with pytest.raises(ValueError, match="of less"):
        Table.decode(bytes(data), like=table)
