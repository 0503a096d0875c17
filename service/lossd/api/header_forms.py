"""Headers that differ only in rows and plain-number parameters: what is known of one is found for another.

A new safetensors header is parsed, its request planned, and its tensors checked. For a small request, that takes as
long as everything else in the front. Most new headers are written by a program that has sent one before, with other
numbers. So headers are cached by their form, which is their text with every number cut out. Of each number, the form
says what it stands for: the rows of tensors, the begin or end of a tensor's bytes, a parameter of the loss that may
differ within a batch, or something else, which must be the same again.

What a number stands for is not derived from the text. Each number is replaced by a mark, the text is parsed with the
marks, and the place where a mark turns up is what its number stands for. Whatever does not fit a form is left to the
usual way, which also finds the words for what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

import orjson

from lossd.api.tensor_route import CheckedHeader
from lossd.caches import Cache
from lossd.job import Recipe
from lossd.request.plan import Plan
from lossd.request.planning import plan_bytes, with_numbers
from lossd_client.wire.safetensors import Header

__all__ = ["FORMS", "HeaderForm", "found_by_form", "learn_form"]

MAX_TEXT_BYTES = 4096
MAX_DIGITS = 9
"""Of the number of rows, and of a parameter: far from every limit of integers."""

_DIGITS = b"0123456789."
_TO_ZERO = bytes.maketrans(_DIGITS, b"0" * len(_DIGITS))
_TO_SPACE = bytes(byte if byte in _DIGITS else 32 for byte in range(256))
_MARK = 10**9  # the mark of the first number; no smaller number is left in the text


class _TensorForm(NamedTuple):
    """A tensor of a form.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        axes: Its shape, without the rows if it has them.
        unit_bytes: Bytes of one row, or of the whole tensor.
        rows: The place of its number of rows; None without rows.
        begin: The place of its first byte's number.
        end: The place of its end's.
    """

    name: str
    dtype: str
    axes: tuple[int, ...]
    unit_bytes: int
    rows: int | None
    begin: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class HeaderForm:
    """What headers of one form have in common.

    Attributes:
        plan: The plan of the first one's request.
        recipe: Their recipe.
        fields: That request's loss.
        tensors: The tensors in the order of their bytes.
        rows: The place of a number of rows.
        parameters: Name and place of each parameter that may differ.
        fixed: Place and text of each number that may not.
    """

    plan: Plan
    recipe: Recipe
    fields: dict[str, Any]
    tensors: tuple[_TensorForm, ...]
    rows: int
    parameters: tuple[tuple[str, int], ...]
    fixed: tuple[tuple[int, bytes], ...]

    def checked(self, numbers: Sequence[bytes]) -> CheckedHeader | None:
        """Return the checked header with these numbers; None if they do not fit.

        Raises:
            Problem: The request is refused, as in the usual way.
        """
        for place, text in self.fixed:
            if numbers[place] != text:
                return None
        digits = numbers[self.rows]
        if len(digits) > MAX_DIGITS or not digits.isdigit() or digits[0] == 48:  # a number without leading zeros
            return None
        rows, at = int(digits), 0
        spans, layout = [], {}
        for name, dtype, shape, size, lead, begin, end in self.tensors:
            if lead is not None:
                if numbers[lead] != digits:
                    return None
                size, shape = size * rows, (rows, *shape)
            if numbers[begin] != b"%d" % at or numbers[end] != b"%d" % (at + size):
                return None
            spans.append((name, at, at + size))
            layout[name] = dtype, shape
            at += size
        plan = self.plan
        if self.parameters:
            replaced = self._plan_with(numbers)
            if replaced is None:
                return None
            plan = replaced
        return CheckedHeader(plan.job_of(self.recipe, rows, layout), tuple(spans), at)

    def _plan_with(self, numbers: Sequence[bytes]) -> Plan | None:
        fields = self.fields.copy()
        for name, place in self.parameters:
            text = numbers[place]
            if len(text) > 2 * MAX_DIGITS:
                return None
            try:
                fields[name] = orjson.loads(text)
            except ValueError:
                return None
        return with_numbers(self.plan, fields)


FORMS: Final[Cache[bytes, HeaderForm]] = Cache("header_forms", 2 << 20)
"""The latest forms, by the text of a header with a 0 in place of each number."""


def found_by_form(text: bytes) -> CheckedHeader | None:
    """Return the checked header of a text whose form is known; None if it is not, or if the numbers do not fit it.

    Raises:
        Problem: The request is refused, as in the usual way.
    """
    if len(text) > MAX_TEXT_BYTES:
        return None
    others, numbers = _split(text)
    form = FORMS.get(b"0".join(others))
    return None if form is None or len(numbers) != len(others) - 1 else form.checked(numbers)


def learn_form(text: bytes, header: Header, plan: Plan, recipe: Recipe) -> None:
    """Keep the form of a header that was checked in the usual way, if only its rows and parameters are to differ.

    Args:
        text: The header's text.
        header: What was read from it; the request is in its metadata.
        plan: The plan of its request.
        recipe: The recipe of its request.
    """
    if len(text) > MAX_TEXT_BYTES or not plan.ignores_row_count:
        return
    others, numbers = _split(text)
    form = _form_of(others, numbers, header, plan, recipe)
    if form is not None:
        FORMS.put(b"0".join(others), form, 1024 + 16 * len(text) + plan_bytes(text, plan) + recipe.nbytes)


def _split(text: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return what is between the numbers of a text, and its numbers.

    If the first are one more than the second, the text neither begins nor ends with a number. Spaces at its end, which
    align the tensors, are left out. This takes half the time of a regular expression.
    """
    text = text.rstrip(b" ")
    return list(filter(None, text.translate(_TO_ZERO).split(b"0"))), text.translate(_TO_SPACE).split()


def _form_of(
    others: Sequence[bytes], numbers: Sequence[bytes], header: Header, plan: Plan, recipe: Recipe
) -> HeaderForm | None:
    """Return the form of a header, given its text split at its numbers; None if a mark is missed."""
    marks = [b"%d" % (_MARK + place) for place in range(len(numbers))]
    try:
        document, marked = (
            orjson.loads(b"".join(chain.from_iterable(zip(others, (*between, b""), strict=True))))
            for between in (numbers, marks)
        )
        request, marked_request = (orjson.loads(each.pop("__metadata__")["request"]) for each in (document, marked))
    except (ValueError, KeyError):
        return None
    # Both texts hold the same fields in the same order, except that a mark may have become part of a name.
    names = dict(zip(document, marked, strict=True)) if len(document) == len(marked) else {}
    fields = request.get("loss") if isinstance(request.get("loss"), dict) else {}
    marked_fields = marked_request.get("loss")
    parameters = {
        name: place
        for name in (plan.loss.varying if plan.loss is not None else ())
        if name in fields and (place := _place(marked_fields.get(name))) is not None
    }
    tensors = []
    for entry in header.entries:
        fields_of = marked.get(names.get(entry.name), {})
        leads = entry.name in plan.leading
        places = (*fields_of.get("data_offsets", ()), *(fields_of.get("shape", ())[:1] if leads else ()))
        begin, end, lead = (*map(_place, places), None, None, None)[:3]
        if begin is None or end is None or entry.begin == entry.end or (leads and lead is None):
            return None
        unit_bytes = (entry.end - entry.begin) // (entry.shape[0] if leads else 1)
        axes = entry.shape[1:] if leads else entry.shape
        tensors.append(_TensorForm(entry.name, entry.dtype, axes, unit_bytes, lead, begin, end))
    rows_of = [tensor.rows for tensor in tensors if tensor.rows is not None]
    if not rows_of:
        return None
    varying = {*parameters.values(), *rows_of, *(place for t in tensors for place in (t.begin, t.end))}
    fixed = tuple((place, text) for place, text in enumerate(numbers) if place not in varying)
    return HeaderForm(plan, recipe, fields, tuple(tensors), rows_of[0], tuple(parameters.items()), fixed)


def _place(mark: Any) -> int | None:
    """Return the place of the number that a mark replaced; None if this is no mark."""
    return mark - _MARK if type(mark) is int and mark >= _MARK else None
