"""Exact sums against rational arithmetic and math.fsum, for any magnitudes, order, split and merging."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lossd.exact.rationals import root, rounded, second_moment
from lossd.exact.sums import BLOCK, HELD, ExactSums, total
from lossd_client.exact import ratio

FINITE = st.floats(allow_nan=False, allow_infinity=False)
ANY = st.floats()
LARGEST, SMALLEST = np.finfo(float).max, 5e-324


def exactly(values: Sequence[float]) -> Fraction:
    return sum(map(Fraction, values), Fraction())


def sums_of(values: Any, index: Any = None, count: int = 1) -> ExactSums:
    sums = ExactSums(count)
    sums.add(values, index)
    return sums


def wide(generator: np.random.Generator, size: int) -> np.ndarray[Any, Any]:
    """Numbers over the whole range of float64: random bits that are finite."""
    values = generator.integers(0, 1 << 64, size, np.uint64).view(np.float64)
    return np.where(np.isfinite(values), values, SMALLEST)


# The sum


@given(st.lists(FINITE))
def test_a_sum_is_exact_and_rounded_once(values: list[float]) -> None:
    sums = sums_of(values)
    assert sums.fraction() == exactly(values)
    (number,), bits = sums.integers()
    assert Fraction(number, 1 << bits) == exactly(values)
    assert sums.sums()[0] == rounded(exactly(values)) == total(values)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [-0.0, -0.0],
        [SMALLEST] * 3,
        [LARGEST, LARGEST, -LARGEST],
        [LARGEST, 2.0**970],  # half a unit beyond the largest number: infinite
        [LARGEST, np.nextafter(2.0**970, 0)],  # less than half: the largest
        [1e308, 1e-308, -1e308],
        [1.0, 2.0**-53, 2.0**-1074],  # a tie that the last bit decides
        [2.0**900, np.nextafter(2.0**900, np.inf), SMALLEST],
        [2.0**31, -(2.0**31), 2.0**31 - 1, 2.0**63],
        [-1.0] * 1000,
    ],
)
def test_a_sum_of_extremes(values: list[float]) -> None:
    assert sums_of(values).fraction() == exactly(values)
    assert sums_of(values).sums()[0] == rounded(exactly(values))
    assert math.copysign(1, sums_of(values).sums()[0]) == (-1 if exactly(values) < 0 else 1)


@pytest.mark.parametrize("scale", [1, 1e-300, 1e300])
@pytest.mark.parametrize("size", [1, 2, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_long_sums_equal_fsum(size: int, scale: float) -> None:
    values = np.random.default_rng(0).standard_normal(size) ** 3 * scale
    assert total(values) == math.fsum(values)


def test_values_over_the_whole_range() -> None:
    values = wide(np.random.default_rng(1), 3 * BLOCK)
    assert sums_of(values).fraction() == exactly(values.tolist())


@given(arrays(np.float64, st.integers(0, 50), elements=ANY), st.integers(1, 5), st.data())
def test_each_sum_has_its_own_values(values: Any, count: int, data: st.DataObject) -> None:
    index = data.draw(arrays(np.int64, len(values), elements=st.integers(0, count - 1)))
    sums = sums_of(values, index, count)
    for k in range(count):
        members = values[index == k]
        assert sums.fraction(k) == exactly(members[np.isfinite(members)].tolist())
        expected = [np.isnan(members).sum(), (members == np.inf).sum(), (members == -np.inf).sum()]
        assert sums.non_finite[k].tolist() == expected
        with np.errstate(invalid="ignore"):
            not_finite = members[~np.isfinite(members)].sum() if not np.isfinite(members).all() else None
        expected_sum = rounded(sums.fraction(k)) if not_finite is None else not_finite
        np.testing.assert_equal(sums.sums()[k], expected_sum)
        assert sums.signs[k] == (sums.fraction(k) > 0) - (sums.fraction(k) < 0)


@pytest.mark.parametrize("count", [3, 1000, 50_000])
def test_many_sums(count: int) -> None:
    """More sums than values, and as many: values wait, and are added together."""
    generator = np.random.default_rng(count)
    values, index = generator.standard_normal(20_000), generator.integers(0, count, 20_000)
    sums = ExactSums(count)
    for first in range(0, len(values), 3000):
        sums.add(values[first : first + 3000], index[first : first + 3000])
    expected = [Fraction()] * count
    for value, k in zip(values.tolist(), index.tolist(), strict=True):
        expected[k] += Fraction(value)
    numbers, bits = sums.integers()
    assert [Fraction(number, 1 << bits) for number in numbers] == expected
    np.testing.assert_array_equal(sums.sums(), [float(value) for value in expected])


@pytest.mark.parametrize("count", [1, 3, 5000])
@pytest.mark.parametrize("size", [5, BLOCK + 5])
def test_one_index_for_all_values(count: int, size: int) -> None:
    """The bytes are those of an index for each value, among them values that are not finite."""
    generator = np.random.default_rng(size)
    values = np.concatenate([generator.standard_normal(size), wide(generator, 20), [math.nan, math.inf, -math.inf]])
    factor = generator.permutation(values)
    one, each = ExactSums(count), ExactSums(count)
    for k in {0, count // 2, count - 1}:
        one.add(values, k)
        one.add_products(values, values, index=k)
        one.add_products(values, factor, index=k)
        index = np.full(len(values), k)
        each.add(values, index)
        each.add_products(values, values.copy(), index=index)
        each.add_products(values, factor, index=index)
    assert one.encode() == each.encode()


@pytest.mark.parametrize("index", [-1, 3, 0.5])
def test_one_index_of_no_sum_is_refused(index: Any) -> None:
    with pytest.raises(ValueError, match="index must be"):
        ExactSums(3).add([1.0, 2.0], index)


def test_means_are_rounded_once() -> None:
    values, index = [0.1, 0.2, 0.3, 1e308, 1e308, 5.0], [0, 0, 0, 1, 1, 2]
    sums = sums_of(values, index, 3)
    expected = [rounded(exactly(values[:3]) / 3), 1e308, math.nan]
    np.testing.assert_array_equal(sums.means([3, 2, 0]), expected)
    weights = sums_of([0.1, 0.2, 1e-300], [0, 0, 1], 3)
    expected = [rounded(exactly(values[:3]) / exactly([0.1, 0.2])), math.inf, math.nan]
    np.testing.assert_array_equal(sums.means(weights), expected)


def test_2_to_40_equal_values_by_merging() -> None:
    """The chunks do not overflow."""
    for value in (1.0, LARGEST, -SMALLEST, math.pi, math.nan):
        sums = sums_of([value])
        for _ in range(40):
            sums.merge(sums)
        if math.isnan(value):
            assert sums.non_finite.tolist() == [[1 << 40, 0, 0]]
        else:
            assert sums.fraction() == Fraction(value) * 2**40
        assert ExactSums.decode(sums.encode(), count=1) == sums


def test_many_additions_do_not_overflow() -> None:
    sums, values = ExactSums(), np.full(BLOCK, LARGEST)
    for _ in range(2000):
        sums.add(values)
    assert sums.fraction() == Fraction(LARGEST) * BLOCK * 2000
    short = ExactSums()
    for _ in range(2000):
        short.add([math.pi])
    assert short.fraction() == Fraction(math.pi) * 2000


# The state


def merged(parts: list[ExactSums], choose: Any) -> ExactSums:
    """Merge in a random tree."""
    while len(parts) > 1:
        first = parts.pop(choose(len(parts)))
        first.merge(parts.pop(choose(len(parts))))
        parts.append(first)
    return parts[0]


@given(arrays(np.float64, st.integers(1, 40), elements=ANY), st.integers(1, 4), st.randoms(use_true_random=False))
def test_order_split_and_merging_do_not_matter(values: Any, count: int, random: Any) -> None:
    index = np.array([random.randrange(count) for _ in values])
    expected = sums_of(values, index, count).encode()
    order = np.array(random.sample(range(len(values)), len(values)))
    cuts = sorted(random.randrange(len(values) + 1) for _ in range(random.randrange(6)))
    parts = [sums_of(values[these], index[these], count) for these in np.split(order, cuts)]
    for part in parts[::2]:
        part.sums()  # reading changes nothing
    sums = merged(parts, random.randrange)
    assert sums.encode() == expected
    assert ExactSums.decode(expected, count=count).encode() == expected


@given(st.lists(arrays(np.float64, st.integers(0, 12), elements=ANY), max_size=6), st.integers(1, 4), st.data())
def test_bytes_are_merged_as_what_they_are_of(batches: list[Any], count: int, data: st.DataObject) -> None:
    whole, encoded = ExactSums(count), []
    for values in batches:
        index = data.draw(arrays(np.int64, len(values), elements=st.integers(0, count - 1)))
        whole.add(values, index)
        encoded.append(sums_of(values, index, count).encode())
    assert ExactSums.merged(encoded, count=count).encode() == whole.encode()
    if encoded:
        damaged = bytearray(data.draw(st.sampled_from(encoded)))
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
        try:
            whole.merge(ExactSums.decode(damaged, count=count))
        except ValueError:
            with pytest.raises(ValueError, match="exact sums"):
                ExactSums.merged([*encoded, bytes(damaged)], count=count)
        else:
            assert ExactSums.merged([*encoded, bytes(damaged)], count=count).encode() == whole.encode()


def test_merging_bytes_carries_over_every_place() -> None:
    generator = np.random.default_rng(5)
    batches = [(wide(generator, 10), generator.integers(0, 175, 10)) for _ in range(500)]
    whole = ExactSums(175)
    for values, index in batches:
        whole.add(values, index)
    assert ExactSums.merged([sums_of(*batch, 175).encode() for batch in batches], count=175).encode() == whole.encode()


def test_thirty_splits_of_many_values() -> None:
    """Wide ranges, blocks that are cut anywhere, and sums that cancel."""
    generator = np.random.default_rng(2)
    values = np.concatenate([wide(generator, 500), generator.standard_normal(20_000)])
    values = np.concatenate([values, -values[::3]])
    expected = sums_of(values).encode()
    for _ in range(30):
        order = generator.permutation(len(values))
        parts = np.split(values[order], np.sort(generator.integers(0, len(values), 4)))
        assert merged([sums_of(part) for part in parts], generator.integers).encode() == expected


@given(st.lists(ANY), st.lists(ANY))
def test_subtraction_takes_a_part_away(values: list[float], more: list[float]) -> None:
    """As if it had never been added, not finite ones too."""
    sums = sums_of(values + more)
    sums.subtract(sums_of(more))
    assert sums == sums_of(values)
    sums.subtract(sums_of(values))
    assert sums == ExactSums()
    assert sums.encode() == ExactSums().encode()


def test_moved_sums_are_renumbered_and_added_up() -> None:
    sums = sums_of([1.0, 2.0, 4.0, math.inf], [0, 1, 2, 2], 4)
    assert sums.moved([2, 0, 2, 1], count=3) == sums_of([1.0, 2.0, 4.0, math.inf], [2, 0, 2, 2], 3)
    assert sums.sums().tolist() == [1, 2, math.inf, 0]


def test_copies_change_independently() -> None:
    sums = sums_of([1.0])
    copy = sums.copy()
    copy.add(2.0)
    assert [sums.sums()[0], copy.sums()[0]] == [1, 3]


def test_added_arrays_may_change_afterwards() -> None:
    sums, values, index = ExactSums(100), np.ones(3), np.arange(3)
    sums.add(values, index)
    values[:], index[:] = 7, 7
    assert sums == sums_of(np.ones(3), np.arange(3), 100)


def test_an_unused_sum_takes_no_space() -> None:
    assert len(sums_of([1.0], [999_999], 1_000_000).encode()) == 24 + 9
    assert len(sums_of(np.full(1000, 0.1), np.arange(1000), 1000).encode()) <= 24 + 3 * 9 * 1000


GOOD = sums_of([1.5, -3.0, math.nan], [0, 2, 1], 3).encode()


def digits(*entries: tuple[int, int, int], count: int = 3, magic: bytes = b"esum", version: int = 1) -> bytes:
    """The bytes of digits: place, sum, digit."""
    columns = zip(*entries, strict=True)
    parts = [struct.pack(f"<{len(entries)}{code}", *column) for code, column in zip("BIi", columns, strict=True)]
    return struct.pack("<4sIQQ", magic, version, count, len(entries)) + b"".join(parts)


def test_the_form_is_the_documented_one() -> None:
    assert ExactSums.decode(digits((101, 0, 3 << 17), (101, 2, -3 << 18), (208, 1, 1)), count=3).encode() == GOOD


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "at least 24 bytes"),
        (GOOD[:-1], "bytes"),
        (GOOD + b"\0", "bytes"),
        (digits((1, 0, 1), magic=b"what"), "no exact sums"),
        (digits((1, 0, 1), version=2), "no exact sums"),
        (digits((1, 0, 1), count=4), "expected 3 exact sums, found 4"),
        (digits((1, 0, 0)), "is 0"),
        (digits((1, 3, 1)), "of no sum"),
        (digits((202, 0, 1)), "no place"),
        (digits((255, 0, 1)), "no place"),
        (digits((1, 1, 1), (1, 0, 1)), "order"),
        (digits((1, 0, 1), (1, 0, 1)), "order"),
        (digits((2, 0, 1), (1, 0, 1)), "order"),
        (digits((208, 0, -1)), "negative"),
        (digits((208, 0, 1), (209, 0, -1)), "negative"),
        (struct.pack("<4sIQQ", b"esum", 1, 3, 1 << 63), "bytes"),
    ],
)
def test_bytes_of_another_form_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ExactSums.decode(data, count=3)


@given(st.binary(max_size=80), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(noise: bytes, start: int) -> None:
    """What is read is written again as it was."""
    data = GOOD[:start] + noise
    try:
        sums = ExactSums.decode(data, count=3)
    except ValueError:
        return
    assert sums.encode() == data


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        (None, "to which of 3 sums"),
        ([0], "one integer for each of 2 values"),
        ([0, 3], "from 0 to 2, found 0 to 3"),
        ([-1, 0], "from 0 to 2"),
        ([0.0, 1.0], "integers"),
    ],
)
def test_a_wrong_index_is_refused(index: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ExactSums(3).add([1.0, 2.0], index)


def test_sums_of_another_number_do_not_combine() -> None:
    for combine in (ExactSums(3).merge, ExactSums(3).subtract):
        with pytest.raises(ValueError, match="expected 3 exact sums, found 2"):
            combine(ExactSums(2))


# Products


def product_sum(*columns: Sequence[float]) -> Fraction:
    return sum((math.prod(map(Fraction, row), start=Fraction(1)) for row in zip(*columns, strict=True)), Fraction())


@given(st.lists(st.tuples(FINITE, FINITE, FINITE)))
def test_products_are_exact(rows: list[tuple[float, ...]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    for many in (2, 3):
        sums = ExactSums()
        sums.add_products(*columns[:many])
        assert sums.fraction() == product_sum(*columns[:many])


@pytest.mark.parametrize("many", [2, 3])
def test_products_of_every_magnitude(many: int) -> None:
    """Also where a product of two floats, or its rounding error, is beyond float64."""
    generator = np.random.default_rng(3)
    for exponents in itertools.product([-1074, -600, -300, 0, 300, 1023], repeat=many):
        factors = [np.ldexp(generator.uniform(-1, 1, 5), e) for e in exponents]
        sums = ExactSums()
        sums.add_products(*factors)
        assert sums.fraction() == product_sum(*(factor.tolist() for factor in factors))


def test_the_largest_and_the_smallest_products() -> None:
    for value in (SMALLEST, LARGEST, -LARGEST):
        sums = ExactSums()
        sums.add_products([value], [value], [value])
        assert sums.fraction() == Fraction(value) ** 3
        for _ in range(60):
            sums.merge(sums)
        assert ExactSums.decode(sums.encode(), count=1).fraction() == Fraction(value) ** 3 * 2**60


@pytest.mark.parametrize(
    "factors",
    [
        (1e-300, 1e-300, math.inf),  # the product of the first two is below float64
        (1e300, -1e300, 0.0),
        (0.0, math.inf, 1.0),
        (math.nan, 0.0, 1.0),
        (-math.inf, 1e-300, 1e-300),
        (math.inf, -math.inf, 1.0),
        (math.inf, 1.0, -2.0),
    ],
)
def test_products_that_are_not_finite(factors: tuple[float, ...]) -> None:
    """As in IEEE 754, but that a product of finite factors is finite."""
    sums = ExactSums()
    sums.add_products(*([factor] for factor in factors))
    finite = all(map(math.isfinite, factors))
    signs = [math.copysign(1, f) if f and math.isfinite(f) else f for f in factors]
    np.testing.assert_equal(sums.sums()[0], float(product_sum(*([f] for f in factors))) if finite else math.prod(signs))


def test_products_have_indices_and_broadcast() -> None:
    sums = ExactSums(2)
    sums.add_products(3.0, [[1.0, 2.0], [1e200, 1e-200]], index=[[0, 1], [1, 0]])
    assert [sums.fraction(0), sums.fraction(1)] == [3 + 3 * Fraction(1e-200), 6 + 3 * Fraction(1e200)]


def test_products_have_two_or_three_factors() -> None:
    with pytest.raises(ValueError, match="two or three factors, found 1"):
        ExactSums().add_products([1.0])


def moment(values: np.ndarray[Any, Any]) -> Fraction:
    sums, squares = sums_of(values), ExactSums()
    squares.add_products(values, values)
    return second_moment(values.size, (sums.fraction(), sums.fraction()), squares.fraction())


def test_squares_about_the_mean_do_not_cancel() -> None:
    values = 1e8 + np.arange(1.0, 6)
    assert moment(values) == 10
    naive = (values**2).sum() - values.sum() ** 2 / 5
    assert naive != 10
    assert moment(values * 2.0**800) == 10 * Fraction(2) ** 1600
    assert moment(np.full(1000, 0.1)) == 0


@given(st.lists(FINITE, min_size=1, max_size=10))
def test_squares_about_the_mean(values: list[float]) -> None:
    mean = exactly(values) / len(values)
    assert moment(np.array(values)) == sum((Fraction(value) - mean) ** 2 for value in values)


# Rounding


@given(st.fractions().filter(lambda value: value >= 0), st.integers(-1000, 1000))
def test_roots_are_rounded_once(value: Fraction, exponent: int) -> None:
    value *= Fraction(4) ** exponent
    found = root(value)
    assert math.isfinite(found)
    below, above = (Fraction(math.nextafter(found, towards)) for towards in (-math.inf, math.inf))
    low, high = (Fraction(found) + below) / 2, (Fraction(found) + above) / 2
    assert max(low, Fraction(0)) ** 2 <= value <= high**2


def test_roots_of_squares() -> None:
    for value in (0.0, 1.0, math.pi, SMALLEST, LARGEST):
        assert root(Fraction(value) ** 2) == value
    assert root(Fraction(LARGEST) ** 2 * 4) == math.inf


def test_ratios_beyond_float64() -> None:
    assert ratio(10**400, 1) == math.inf
    assert ratio(-(10**400), 1) == ratio(10**400, -1) == -math.inf
    assert math.isnan(ratio(1, 0))
    assert ratio(1, 3 * 10**323) == rounded(Fraction(1, 3 * 10**323)) == SMALLEST


@given(arrays(np.float64, st.integers(0, 60), elements=ANY))
def test_few_values_of_a_single_sum_add_up_as_many_do(values: Any) -> None:
    """Few are added as integers, many in blocks: the zeros make them many."""
    few, many = sums_of(values), sums_of(np.concatenate([values, np.zeros(HELD)]))
    assert few.encode() == many.encode()
    assert ExactSums.decode(few.encode(), count=1) == many
    merged = sums_of(values)
    merged.merge(many)
    assert merged.encode() == sums_of(np.concatenate([values, values])).encode()
    merged.subtract(few)
    assert merged == few


@pytest.mark.parametrize("value", [1.0, -0.0, 0.1, SMALLEST, -LARGEST, math.nan, -math.inf])
def test_many_equal_values_add_up_as_any(value: float) -> None:
    values = np.full(3 * HELD + 1, value)
    split = sums_of(values[:7])
    split.add(values[7:])
    split.add(np.array([0.0]))
    assert split.encode() == sums_of(np.concatenate([values, [0.0]])).encode()
    if math.isfinite(value):
        assert sums_of(values).fraction() == Fraction(value) * len(values)
