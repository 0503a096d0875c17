"""Remedies for tensors that do not fit: each one is tried on the shapes, and only those that fit are proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set

from lossd.losses.lookup import closest
from lossd_client.wire import DTYPES

__all__ = ["fitting_remedies", "meant"]

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""The tensors of a request: dtype and shape by name."""

INTEGER_DOMAINS = {
    "class": "class indices",
    "class_set": "class indices",
    "predicted": "class indices",
    "integer": "its entries",
}
"""Domains that are integers only, and their names in messages."""

UNBATCHED = ("sample_weight", "cotangent")

# Other libraries' names of our inputs; for messages only.
SYNONYMS: Mapping[str, str] = {
    **dict.fromkeys(
        ("pred", "preds", "y_pred", "yhat", "y_hat", "logits", "scores", "score", "output", "outputs", "input", "x"),
        "prediction",
    ),
    **dict.fromkeys(("y", "y_true", "gt", "ground_truth", "truth", "labels", "label", "true", "mask"), "target"),
    **dict.fromkeys(("weight", "weights", "sample_weights", "w"), "sample_weight"),
}


def meant(name: str, known: tuple[str, ...]) -> str | None:
    """Return the input that a wrong name most likely means."""
    near = closest(name, known, SYNONYMS) or [n for n in known if len(name) > 2 and n.startswith(name.lower())]
    return near[0] if near else None


def fitting_remedies(layout: Layout, domains: Mapping[str, Set[str]], fits: Callable[[Layout], bool]) -> list[str]:
    """Return remedies that make the tensors fit, as the ends of a sentence; empty if none is known.

    Args:
        layout: The tensors, which do not fit.
        domains: The domains of each input's entries, see :class:`lossd.losses.types.TensorType`.
        fits: Whether a layout fits.
    """
    found = []
    for sentence, changed in (*_as_indices(layout, domains), *_of_a_batch(layout, domains), *_other_axes(layout)):
        if fits({**layout, **changed}):
            found.append(sentence)
            if not sentence.endswith("one-hot"):  # later remedies change the tensors more
                break
    return found


Change = tuple[str, Layout]


def _as_indices(layout: Layout, domains: Mapping[str, Set[str]]) -> Iterator[Change]:
    for name, (dtype, shape) in layout.items():
        allowed = domains.get(name, frozenset())
        if DTYPES[dtype].kind == "float" and (
            what := next((INTEGER_DOMAINS[domain] for domain in INTEGER_DOMAINS if domain in allowed), "")
        ):
            yield f'{what} are integers: send {name}.astype("int64")', {name: ("int64", shape)}
        if "class" in allowed and len(shape) > 1 and shape[1] > 1:
            yield f"send {name}.argmax(axis=1) if it is one-hot", {name: ("int64", (shape[0], *shape[2:]))}


def _of_a_batch(layout: Layout, inputs: Iterable[str]) -> Iterator[Change]:
    batched = [name for name in inputs if name in layout and name not in UNBATCHED]
    if "prediction" in layout and DTYPES[layout["prediction"][0]].kind == "integer":
        return  # these may be classes, not scores
    for names in (batched, *([name] for name in batched)):
        sent = " and ".join(f"{name}[None]" for name in names)
        yield (
            f"if the batch axis is missing, add it: send {sent}",
            {name: (layout[name][0], (1, *layout[name][1])) for name in names},
        )


def _other_axes(layout: Layout) -> Iterator[Change]:
    for name, (dtype, shape) in layout.items():
        for axis in (axis for axis, length in enumerate(shape) if length == 1):
            yield (
                f"drop the axis of length 1: send {name}.squeeze({axis})",
                {name: (dtype, (*shape[:axis], *shape[axis + 1 :]))},
            )
        if len(shape) > 2:
            moved = (shape[0], shape[-1], *shape[1:-1])
            yield f"classes are axis 1: send numpy.moveaxis({name}, -1, 1)", {name: (dtype, moved)}
        if len(shape) == 2:
            yield f"the axes may be exchanged: send {name}.T", {name: (dtype, shape[::-1])}
