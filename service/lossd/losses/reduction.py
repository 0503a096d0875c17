"""The only module that reduces, weights and masks.

Losses return one value per entry; this module makes one number per request. Sums accumulate in float64 over pairwise
partial sums, never through a matrix product, which would spread one request's NaN to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.elementary import row_total
from lossd.losses.registry import Unreduced

__all__ = ["Reducer", "Segments", "class_weights", "ratio", "times", "weighted", "without_ignored"]


LONG, PARTIAL = 1 << 16, 1024
"""Rows of ``LONG`` entries or more are summed in their own dtype by ``PARTIAL`` entries, then in float64."""


class Segments:
    """The rows of each request of a batch.

    Args:
        rows: The number of rows of each request, in order; at least 1 each.
        device: The device of the rows' tensors.
        alike: Whether a request's sums and norms have the same bits alone and among others, on a CPU.
    """

    def __init__(self, rows: Sequence[int], device: torch.device | str = "cpu", *, alike: bool = False) -> None:
        self.rows = list(rows)
        self.device = device
        self.alike = alike
        self.count = len(self.rows)
        self.total = sum(self.rows)
        self.equal = self.rows.count(self.rows[0]) == self.count

    @cached_property
    def lengths(self) -> Tensor:
        """Rows of each request, (B,) int64."""
        if self.equal:  # a list of many takes 30 ns an entry
            return torch.full((self.count,), self.rows[0], dtype=torch.int64, device=self.device)
        return torch.tensor(self.rows, dtype=torch.int64, device=self.device)

    def sizes(self, entries: int) -> Tensor:
        """Return the entries of each request, (B,) float64, given those of a row."""
        if self.equal:
            return torch.full((self.count,), self.rows[0] * entries, dtype=torch.float64, device=self.device)
        return self.lengths.double() * entries

    @cached_property
    def index(self) -> Tensor:
        """The request each row belongs to, (R,) int64."""
        requests = torch.arange(self.count, device=self.device)
        return torch.repeat_interleave(requests, self.lengths, output_size=self.total)

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each request."""
        starts, at = [], 0
        for rows in self.rows:
            starts.append(at)
            at += rows
        return starts

    def sum(self, per_row: Tensor) -> Tensor:
        """Return sums over each request's rows: (R, ...) to (B, ...), float64 for floats and int64 for integers."""
        dtype = torch.float64 if per_row.is_floating_point() else torch.int64
        if self.count == self.total and per_row.dtype == dtype:
            return per_row
        if self.alike and per_row.device.type == "cpu" and dtype == torch.float64:
            # torch adds up one request, several of equal length, and others in three different orders.
            with np.errstate(all="ignore"):  # non-finite values are valid results
                return torch.from_numpy(np.add.reduceat(per_row.to(dtype).numpy(), self.starts))
        if self.count == 1:
            return per_row.sum(0, keepdim=True, dtype=dtype)
        if self.equal:
            return per_row.reshape(self.count, self.rows[0], *per_row.shape[1:]).sum(1, dtype=dtype)
        sums = torch.zeros(self.count, *per_row.shape[1:], dtype=dtype, device=per_row.device)
        return sums.index_add_(0, self.index, per_row.to(dtype))

    def largest(self, per_row: Tensor) -> Tensor:
        """Return the largest number of each request's rows, at least 0: (R,) to (B,)."""
        largest = torch.zeros(self.count, dtype=per_row.dtype, device=per_row.device)
        return largest.scatter_reduce_(0, self.index, per_row, "amax")

    def spread(self, per_request: Tensor, ndim: int = 1) -> Tensor:
        """Return each request's number for its rows: (B,) to (R, 1, ...) with ``ndim`` axes; 0-d if B is 1."""
        if self.count == 1:
            return per_request.reshape(())
        if self.count == self.total:
            rows = per_request
        else:
            rows = per_request[self.index] if not self.equal else per_request.repeat_interleave(self.rows[0])
        return rows.reshape(-1, *(1,) * (ndim - 1))

    def split(self, per_row: Tensor) -> tuple[Tensor, ...]:
        """Return each request's rows."""
        return torch.split(per_row, self.rows)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient; 0 with gradient 0 if the denominator is 0 (nothing to average)."""
    empty = denominator == 0
    if not empty.is_cuda and not bool(empty.any()):  # as nearly always, and one operation instead of four
        return numerator / denominator
    return torch.where(empty, torch.zeros_like(numerator), numerator / denominator.masked_fill(empty, 1))


def row_sums(value: Tensor) -> Tensor:
    """Return the sum of each row's entries, (R, ...) to (R,): float64."""
    flat = value.reshape(value.shape[0], -1)
    whole = flat.shape[1] // PARTIAL * PARTIAL
    if whole < LONG or value.dtype == torch.float64:
        return row_total(flat, dtype=torch.float64)
    # torch converts a tensor to float64 before it sums it. For long rows, convert only their partial sums.
    partial = flat[:, :whole].reshape(flat.shape[0], -1, PARTIAL).sum(2)
    return row_total(partial, dtype=torch.float64) + row_total(flat[:, whole:], dtype=torch.float64)


class Reducer:
    """Reduces one value per entry to one loss per request, and computes the gradient's factors.

    Call :meth:`upstream` once the weights are known, then :meth:`reduce` once the values are.

    Args:
        mode: mean, sum, none or batchmean.
        segments: The requests' rows.
        shape: The shape of the value, (R, ...).
        dtype: The dtype of the gradient's computation.
        sample_weight: The weight of each row, (R,), or None.
        cotangent: The caller's own upstream gradient: (B,), or of the value's shape if ``mode`` is none; or None.
        entry_weight: The weight of each entry of the value, 0 where it does not count, float64; or None.
        careful: Whether to keep a mean finite although its numerator or denominator overflows.
    """

    def __init__(
        self,
        mode: str,
        segments: Segments,
        shape: Sequence[int],
        dtype: torch.dtype,
        sample_weight: Tensor | None = None,
        cotangent: Tensor | None = None,
        entry_weight: Tensor | None = None,
        *,
        careful: bool = False,
    ) -> None:
        self.mode = mode
        self.segments = segments
        self.careful = careful and mode in ("mean", "batchmean")
        # A mean does not depend on the scale of the weights. Divided by the largest, their sums do not overflow.
        # The denominator of batchmean counts samples: the scale of sample weights alone does not matter.
        self._scales_entries = self.careful and mode == "mean"
        self.unit = self.sample_unit = torch.ones((), dtype=torch.float64, device=segments.device)
        if self.careful and sample_weight is not None:
            self.sample_unit = self._largest(sample_weight)
            sample_weight = sample_weight / segments.spread(self.sample_unit)
        if self._scales_entries and entry_weight is not None:
            unit = self._largest(entry_weight)
            entry_weight = entry_weight / segments.spread(unit, entry_weight.ndim)
            self.sample_unit = self.sample_unit * unit
        self.shape = tuple(shape)
        self.dtype = dtype
        self.sample_weight = sample_weight
        self.entry_weight = entry_weight
        self.cotangent = cotangent
        self.denominator: Tensor | None = None
        self.factor = self.unit
        """What :meth:`upstream` returned."""

    def upstream(self, weight: Tensor | None) -> Tensor:
        """Return the factor of each entry's gradient, which broadcasts against the value.

        Args:
            weight: What each entry adds to the mean's denominator, in the shape of the value; None for 1.
        """
        if self._scales_entries and weight is not None:
            self.unit = self._largest(weight)
            weight = weight / self.segments.spread(self.unit, weight.ndim)
        self.denominator = self._denominators(weight)
        weights = self._combined_weight(len(self.shape))
        self._positive = weight is None and weights is None
        ndim = len(self.shape)
        factor = self.cotangent
        if self.mode in ("mean", "batchmean"):
            share = self._share(self.denominator)
            factor = self.segments.spread(share if factor is None else share * factor, ndim)
        elif factor is not None and self.mode == "sum":
            factor = self.segments.spread(factor, ndim)
        if factor is None:
            factor = torch.ones((), dtype=self.dtype, device=self.segments.device)
        if weights is not None:  # a factor may be NaN where an entry does not count
            factor = factor * weights if self.entry_weight is None else torch.where(weights == 0, 0, factor * weights)
        self.factor = factor.to(self.dtype)
        return self.factor

    def reduce(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return loss, numerator and denominator, each (B,) float64, and the value with its sample weights."""
        assert self.denominator is not None, "upstream() comes first: it learns the weights"
        if (weight := self._combined_weight(value.ndim)) is not None:
            value = torch.where(weight == 0, torch.zeros_like(value), value * weight)
        numerator, denominator = self.segments.sum(row_sums(value)), self.denominator
        total = self._over_denominator(numerator) if self.mode in ("mean", "batchmean") else numerator
        if self.careful:  # sum the quotients: each is at most the value
            share = self._share(denominator)
            total = self.segments.sum(row_sums(value * self.segments.spread(share, value.ndim)))
            numerator = numerator * self.sample_unit
            denominator = denominator * self.sample_unit * self.unit
        return total, numerator, denominator, value

    def count(self, weight: Tensor | None) -> Tensor:
        """Return how many entries have a weight other than 0, (B,) float64."""
        weights = self._combined_weight(len(self.shape) if weight is None else weight.ndim)
        if weight is None and weights is None:
            return self.segments.sizes(self._entries)
        counted = (
            torch.ones(self.shape, dtype=torch.bool, device=self.segments.device) if weight is None else weight != 0
        )
        if weights is not None:
            counted = counted & (weights != 0)
        return self.segments.sum(counted.reshape(counted.shape[0], -1).sum(1)).double()

    @property
    def _entries(self) -> int:
        return torch.Size(self.shape[1:]).numel()

    def _share(self, denominator: Tensor) -> Tensor:
        """Return the factor of each entry in the mean, (B,)."""
        if self._positive and not self.careful:
            return denominator.reciprocal()
        return self._over_denominator(torch.ones_like(denominator)) / self.unit

    def _largest(self, weight: Tensor) -> Tensor:
        """Return the largest weight of each request, (B,); 1 if all are 0."""
        largest = self.segments.largest(weight.reshape(weight.shape[0], -1).amax(1).double())
        return largest.masked_fill(largest == 0, 1)

    def _over_denominator(self, numerator: Tensor) -> Tensor:
        assert self.denominator is not None
        return numerator / self.denominator if self._positive else ratio(numerator, self.denominator)

    def _combined_weight(self, ndim: int) -> Tensor | None:
        """Return the caller's weight of each entry, which broadcasts against a value of ``ndim`` axes; None for 1."""
        if self.sample_weight is None:
            return self.entry_weight
        of_rows = self.sample_weight.reshape(-1, *(1,) * (ndim - 1))
        return of_rows if self.entry_weight is None else of_rows * self.entry_weight

    def _denominators(self, weight: Tensor | None) -> Tensor:
        if self.mode == "batchmean":
            if self.entry_weight is not None:  # a sample counts if one of its entries does
                some = (self.entry_weight != 0).reshape(len(self.entry_weight), -1).any(1).double()
                return self.segments.sum(some if self.sample_weight is None else some * self.sample_weight)
            if self.sample_weight is None:
                return self.segments.sizes(1)
            return self.segments.sum(self.sample_weight)
        if weight is not None or self.entry_weight is not None:
            weights = self._combined_weight(len(self.shape) if weight is None else weight.ndim)
            weight = weights if weight is None else weight if weights is None else weight * weights
            assert weight is not None
            return self.segments.sum(row_sums(weight.expand(self.shape)))
        if self.sample_weight is not None:
            return self.segments.sum(self.sample_weight) * self._entries
        return self.segments.sizes(self._entries)


def class_weights(
    target: Tensor, like: Tensor, class_weight: Sequence[float] | None, ignore_index: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return targets that are valid indices, and their weights in the mean.

    Args:
        target: Class indices, (N, *), which may include ``ignore_index``.
        like: A tensor with the dtype and the device of the weights.
        class_weight: The weight of each of the C classes; None for 1.
        ignore_index: The class that does not count; None for none.

    Returns:
        The targets with the ignored ones set to 0, and their weights: 0 where ignored, else the class's. The weights
        are None where every target counts one.
    """
    target = target.long()
    ignored = None if ignore_index is None else target == ignore_index
    if ignored is not None and not bool(ignored.any()):
        ignored = None
    if ignored is not None:
        target = target.masked_fill(ignored, 0)
    if class_weight is None and ignored is None:
        return target, None
    if class_weight is None:
        weight = torch.ones_like(target, dtype=like.dtype)
    else:
        weight = torch.tensor(class_weight, dtype=like.dtype, device=like.device)[target]
    return target, weight if ignored is None else weight.masked_fill(ignored, 0)


def without_ignored(target: Tensor, ignore_index: int | None) -> tuple[Tensor, Tensor | None]:
    """Return binary targets with 0 where ignored, (N, *) floats, and their weights: 0 where ignored, else 1.

    The weights are None if no target is ignored.
    """
    ignored = None if ignore_index is None else target == ignore_index
    if ignored is None or not bool(ignored.any()):
        return target, None
    return target.masked_fill(ignored, 0), (~ignored).to(target.dtype)


def weighted(value: Tensor, weight: Tensor | None, scale: Tensor | float | None = None) -> Tensor | Unreduced:
    """Return the value multiplied by its weights; exactly 0 where the weight is 0.

    Args:
        value: One number for each position.
        weight: The weight of each position, which the denominator of the mean also counts; None for 1.
        scale: Factors that the denominator does not count; None for 1.
    """
    if weight is None:
        return value if scale is None else times(value, scale)
    return Unreduced(times(value, weight if scale is None else weight * scale), weight)


def times(value: Tensor, factor: Tensor | float) -> Tensor:
    """Return the value multiplied by a factor that broadcasts against it; exactly 0 if that is 0."""
    factor = torch.as_tensor(factor, dtype=value.dtype, device=value.device)
    return torch.where(factor == 0, torch.zeros_like(value), value * factor)
