"""The entries of a batch: which ones count, their sums by request, and their blocks.

Entries are what a metric averages over: every row of a tensor times every position along its further axes, (R, I).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import numpy as np

from lossd.counting_kernels import NO_KERNELS, CountingKernels
from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.reduction import Segments
from lossd.metrics.registry import Array, Floats
from lossd.metrics.view import View

__all__ = ["Entries", "blocks", "entrywise", "for_kernels", "most_likely", "rowwise"]

# Numbers in a block, few enough for its intermediate results to stay in a core's second-level cache.
BLOCK = 1 << 18

FEW_CLASSES = 48
"""NumPy takes less time than a kernel to find the highest of more classes that follow one another."""


class Entries:
    """The entries of a batch that count, and their sums by request.

    Sample weights are scaled by a power of two, so that each request's largest lies in [1/2, 1): ratios keep every bit,
    and products of sums of weights stay within float64.

    Args:
        view: The batch.
        ignored: The entries that do not count, (R, I) bool; None if all count.
    """

    def __init__(self, view: View, ignored: Tensor | None = None) -> None:
        self.view = view
        self.segments = view.segments
        self.weight: Tensor | None = None
        if view.ignored is not None:
            ignored = view.ignored if ignored is None else ignored | view.ignored
        if view.sample_weight is not None:
            weight = view.sample_weight.numpy(force=True)
            self._exponent = np.frexp(np.maximum.reduceat(weight, self.segments.starts))[1]
            scaled = np.ldexp(weight, -np.repeat(self._exponent, self.segments.rows))
            if (lost := (scaled == 0) & (weight > 0)).any():  # another weight is 1e300 times as large
                scaled[lost] = np.finfo(float).smallest_subnormal
            self.weight = torch.from_numpy(scaled).to(view.sample_weight.device)
            # Drop rows instead of multiplying by 0: a NaN in a dropped row must not spread.
            dropped = (self.weight == 0).unsqueeze(1)
            ignored = dropped if ignored is None else ignored | dropped
        self.ignored = ignored

    def counts(self, sums: Array) -> Array:
        """Return sums of weights, (B, ...), in the scale of the sent weights."""
        if self.weight is None:
            return sums
        rescaled: Array = np.ldexp(sums, self._exponent.reshape(-1, *(1,) * (sums.ndim - 1)))
        return rescaled

    def repeated(self, width: int) -> Entries:
        """Return the entries of several classes: each as often as makes ``width`` of them, (R, C·I)."""
        if self.ignored is None or self.ignored.shape[1] in (1, width):
            return self
        ignored = self.ignored.repeat(1, width // self.ignored.shape[1])
        return Entries(self.view._replace(left_out=None), ignored)

    def by_row(self) -> Entries:
        """Return the same entries with each row as a request of its own and weights of 1."""
        rows = Segments([1] * self.segments.total, self.segments.device)
        return Entries(self.view._replace(segments=rows, sample_weight=None), self.ignored)

    def rows_of(self, request: int) -> slice:
        """Return the rows of one request."""
        start = self.segments.starts[request]
        return slice(start, start + self.segments.rows[request])

    def tally(self, key: Tensor, cells: int, values: Tensor | None = None) -> Array:
        """Return how many entries of each request have each key; exact integers without weights.

        Args:
            key: Keys, (R, I) int64, from 0 to ``cells`` - 1 where the entry counts.
            cells: The number of keys.
            values: What is added up instead of ones, (R, I) float64.

        Returns:
            (B, cells) int64; float64 with values or sample weights.
        """
        count = self.segments.count
        if count > 1:
            key = torch.add(key, self.segments.index.unsqueeze(1), alpha=cells)
        return self._tally(key, count * cells, slice(None), values).reshape(count, cells)

    def tallies(self, key: Tensor, cells: int) -> Iterator[Array]:
        """Yield the counts of :meth:`tally` request by request, (cells,) each, to save memory."""
        for request in range(self.segments.count):
            rows = self.rows_of(request)
            tally = self._tally(key[rows], cells, rows, None)
            yield tally if self.weight is None else np.ldexp(tally, self._exponent[request])

    def _tally(self, key: Tensor, cells: int, rows: slice, values: Tensor | None) -> Array:
        if self.ignored is not None:
            key = key.masked_fill(self.ignored[rows], cells)
        weight = values
        if self.weight is not None:
            row_weight = self.weight[rows].unsqueeze(1)
            weight = row_weight.expand(key.shape) if values is None else values * row_weight
        flat = None if weight is None else weight.reshape(-1)
        return torch.bincount(key.reshape(-1), flat, minlength=cells + 1)[:cells].numpy(force=True)

    def total(self, values: Tensor) -> Floats:
        """Return the weighted sum of each request's entries: (R, I) to (B,) float64."""
        if self.ignored is not None:
            values = values.masked_fill(self.ignored, 0)
        return self.sums(row_total(values, keepdim=True, dtype=torch.float64))[:, 0]

    def sums(self, rows: Tensor) -> Floats:
        """Return the weighted sum of each request's rows: (R, ...) to (B, ...); dropped rows add nothing."""
        if self.weight is not None:
            row_weight = self.weight.reshape(-1, *(1,) * (rows.ndim - 1))
            rows = torch.where(row_weight == 0, 0, rows * row_weight)
        return self.segments.sum(rows).numpy(force=True)

    def largest(self, *columns: Tensor) -> Floats:
        """Return the largest number of each request's rows that count: (R,) each to (B, K) float64; -inf for none."""
        largest = np.empty((self.segments.count, len(columns)))
        for k, column in enumerate(columns):
            kept = column if self.weight is None else column.masked_fill(self.weight == 0, -torch.inf)
            largest[:, k] = np.maximum.reduceat(kept.numpy(force=True), self.segments.starts)
        return largest

    def size(self, shape: torch.Size) -> Array:
        """Return how many of each request's entries count, (B,): int64, or float64 if weighted."""
        if self.ignored is None:
            return self.segments.lengths.numpy(force=True) * shape[1]
        rows = (~self.ignored).expand(shape).sum(1)
        return self.segments.sum(rows if self.weight is None else rows * self.weight).numpy(force=True)

    def mean_of(self, values: Tensor) -> tuple[Floats, Array]:
        """Return numerator and denominator of the mean of each request's entries: (R, I) to (B,) and (B,)."""
        total, size = self.total(values), self.size(values.shape)
        if (large := np.isinf(total)).any():  # a sum may overflow although the mean does not
            total = np.where(large, self.total(values.double() * 2.0**-64), total)
            size = np.where(large, size * 2.0**-64, size)
        return total, size

    def row_means(self, values: Floats, defined: Array) -> tuple[Floats, Array]:
        """Return the mean over each request's defined rows, (R, K) to (B, K), and whether there is one.

        Args:
            values: Values, (R, K); anything where undefined.
            defined: Which rows are defined, (R, K) or (R, 1) bool.
        """
        share = defined * (1.0 if self.weight is None else self.weight.numpy(force=True)[:, None])
        total = np.add.reduceat(np.broadcast_to(share, values.shape), self.segments.starts)
        sums = np.add.reduceat(np.where(share > 0, values, 0) * share, self.segments.starts)
        return sums / np.where(total > 0, total, 1), total > 0


def for_kernels(view: View, *tensors: Tensor) -> tuple[Array, list[Array], int] | None:
    """Return the requests' first rows with the end, (B + 1,), floats as flat float32 words, and the words of a number.

    None if kernels cannot count them: they know no weights and no masks, and take one dtype, float32 or float64.
    """
    words = {torch.float32: 1, torch.float64: 2}.get(tensors[0].dtype)
    if words is None or view.sample_weight is not None or view.left_out is not None:
        return None
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return None
    starts = np.array([*view.segments.starts, view.segments.total])
    return starts, [tensor.contiguous().numpy().reshape(-1).view(np.float32) for tensor in tensors], words


def blocks(rows: int, width: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of the first and the last axis of a (rows, width, length) tensor, about ``BLOCK`` numbers each.

    The last axis is cut by a row's shape alone, so that a row is summed the same way in any batch.
    """
    if width * length <= BLOCK:
        step = max(1, BLOCK // (width * length))
        for first in range(0, rows, step):
            yield slice(first, min(first + step, rows)), slice(0, length)
        return
    step = max(1, BLOCK // width)
    for row in range(rows):
        for first in range(0, length, step):
            yield slice(row, row + 1), slice(first, min(first + step, length))


def entrywise(function: Callable[..., Tensor], scores: Tensor, *others: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``function`` of each entry, without an intermediate result of the size of ``scores``.

    Args:
        function: Maps blocks (r, C, i) of ``scores`` and (r, i) of ``others`` to (r, i).
        scores: Scores, (R, C, I).
        others: Further tensors, (R, I) each.
        dtype: The dtype of the result.
    """
    rows, classes, length = scores.shape
    answer = torch.empty(rows, length, dtype=dtype, device=scores.device)
    for row, column in blocks(rows, classes, length):
        answer[row, column] = function(scores[row, :, column], *(other[row, column] for other in others))
    return answer


def rowwise(
    function: Callable[..., Tensor], *tensors: Tensor, join: Callable[[Tensor, Tensor], Tensor] = operator.add
) -> Tensor:
    """Return ``function`` of each row, without an intermediate result of the size of the tensors.

    Args:
        function: Maps blocks (r, i) of ``tensors`` to (r, K) float64.
        tensors: Tensors, (R, I) each.
        join: Combines the results of a row's parts, starting from 0.

    Returns:
        (R, K) float64.
    """
    rows, length = tensors[0].shape
    answer: Tensor | None = None
    for row, column in blocks(rows, 1, length):
        part = function(*(tensor[row, column] for tensor in tensors))
        if answer is None:
            answer = part.new_zeros(rows, part.shape[1])
        answer[row] = join(answer[row], part)
    assert answer is not None, "requests have rows"
    return answer


def most_likely(scores: Tensor, kernels: CountingKernels = NO_KERNELS) -> Tensor:
    """Return the class with the highest score: (R, C, I) to (R, I) int64; the lowest index of several."""
    if scores.is_cuda or scores.dtype == torch.bfloat16:
        return scores.argmax(1)
    rows, classes, positions = scores.shape
    few = 0 < classes <= FEW_CLASSES or (positions > 1 and classes)
    if few and scores.dtype in (torch.float32, torch.float64) and (highest := kernels.get("highest")) is not None:
        found = np.empty((rows, positions), np.int64)
        flat = scores.detach().contiguous().numpy().reshape(-1)
        highest(flat.view(np.float32), flat.itemsize // 4, classes, found)
        return torch.from_numpy(found)
    if scores.shape[2] == 1:  # NumPy's takes a tenth of the time of torch's for 1000 classes
        return torch.from_numpy(scores.detach().numpy()[:, :, 0].argmax(1)).unsqueeze(1)
    # On a CPU, torch.argmax along an axis that is not the last is an order of magnitude slower than amax.
    kind = torch.uint8 if classes < 1 << 8 else torch.int16 if classes < 1 << 15 else torch.int32
    falling = torch.arange(classes, 0, -1, dtype=kind).unsqueeze(1)

    def first_highest(block: Tensor) -> Tensor:
        highest = (block == block.amax(1, keepdim=True)).view(torch.uint8)
        rank = (highest * falling).amax(1)
        return classes - rank if bool(rank.all()) else block.argmax(1)  # a NaN equals nothing, so its row has rank 0

    return entrywise(first_highest, scores, dtype=torch.int64)
