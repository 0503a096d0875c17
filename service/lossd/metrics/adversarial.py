"""Adversarial training: the discriminator's decisions on real and generated samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lossd.lazy_torch import Tensor, torch
from lossd.losses.reduction import Segments
from lossd.losses.registry import Input
from lossd.metrics.activation import least_score
from lossd.metrics.binary import Binary
from lossd.metrics.combinations import Combinations
from lossd.metrics.entries import Entries
from lossd.metrics.parts import Mean
from lossd.metrics.registry import Array, Task, metric, task
from lossd.metrics.signature import NO_SCORES, SAMPLE_WEIGHT, constant_input, floats
from lossd.metrics.view import View

__all__ = ["Adversarial", "Generated", "LeastSquares", "LeastSquaresGenerated"]


@task("gan")
class Adversarial(Binary):
    """A discriminator's decisions: real samples are positive, generated ones are not.

    Scores are read as logits: what is not below 0 is taken for real (a Wasserstein critic's scores have no such zero;
    their order, auroc, says more).
    """

    activation: ClassVar[str] = "logits"
    no_labels: ClassVar[str] = NO_SCORES

    base: ClassVar[tuple[str, ...]] = ("cells",)

    def read(self, view: View) -> View:
        """Return the view of real and generated samples as predictions with targets."""
        real, fake = view.tensors["real"], view.tensors["fake"]
        # Requests that are stacked have as many fake samples each; others have one for each real one.
        fakes = (
            view.segments.rows if len(real) == len(fake) else [len(fake) // view.segments.count] * view.segments.count
        )
        rows = [r + f for r, f in zip(view.segments.rows, fakes, strict=True)]
        return view._replace(
            tensors=_Samples(real, fake, view.segments.rows, fakes),
            segments=Segments(rows, view.segments.device),
            combinations=None if view.combinations is None else _of_both(view.combinations, view.segments, fakes),
            activation=self.activation,
            sample_weight=None,
            ignore_index=None,
            dtypes={"prediction": view.sent("real", "fake")},
        )

    def warnings(self, names: Sequence[str]) -> list[list[str]]:
        """None: what the scores are follows from the task."""
        return [[] for _ in range(self.count)]

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: scores of as many real as generated samples."""
        scores = floats("real", "N *")
        return (
            constant_input("real", "The discriminator's scores of real samples.", scores, no_labels=cls.no_labels),
            constant_input("fake", "Its scores of generated samples, as many.", scores, no_labels=cls.no_labels),
        )


class _Samples(Mapping[str, Tensor]):
    """Predictions and targets: each request's real samples, then its fakes.

    They are made at first use, because a compiled pass has counted what most requests ask for.
    """

    def __init__(self, real: Tensor, fake: Tensor, reals: Sequence[int], fakes: Sequence[int]) -> None:
        self._scores = real, fake
        self._rows = list(reals), list(fakes)

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        parts: list[Tensor] = []
        target: list[Tensor] = []
        real, fake = (torch.split(scores, rows) for scores, rows in zip(self._scores, self._rows, strict=True))
        for of_real, of_fake in zip(real, fake, strict=True):
            parts += of_real, of_fake
            target += torch.ones_like(of_real), torch.zeros_like(of_fake)
        return {"prediction": torch.cat(parts), "target": torch.cat(target)}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("prediction", "target"))

    def __len__(self) -> int:
        return 2


def _of_both(combinations: Combinations, segments: Segments, fakes: Sequence[int]) -> Combinations:
    """Return the combinations of each request's real samples and then of its fakes, which are paired with rows."""
    parts: list[Array] = []
    for first, rows, count in zip(segments.starts, segments.rows, fakes, strict=True):
        of_rows = combinations.index[first : first + rows]
        parts += of_rows, np.resize(of_rows, count)
    return Combinations(np.concatenate(parts), combinations.count)


@task("lsgan")
class LeastSquares(Adversarial):
    """Decisions of a discriminator trained to 1 for real samples and 0 for generated ones: real from 0.5 on.

    Thresholds are scores, any real.
    """

    activation: ClassVar[str] = "score"
    no_labels: ClassVar[str] = ""

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Check nothing: every threshold is a score."""


@task("gan_generator")
class Generated(Task):
    """Scores of generated samples alone, as in a generator's loss.

    Scores are read as logits, as in the task gan.
    """

    activation: ClassVar[str] = "logits"
    no_labels: ClassVar[str] = NO_SCORES
    options: ClassVar[tuple[str, ...]] = ("threshold", "zero_division")

    @cached_property
    def entries(self) -> Entries:
        """The entries that count."""
        return Entries(self.view)

    @Mean
    def taken(self) -> Tensor:
        """Whether each sample is taken for real, (R, I)."""
        fake = self.view.tensors["fake"]
        least = least_score(self.view.options.get("threshold"), self.activation, self.view.sent("fake"))
        return (fake.reshape(len(fake), -1) >= least).double()

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the inputs: scores of generated samples."""
        scores = floats("real", "N *")
        return (
            constant_input("fake", "The discriminator's scores of generated samples.", scores, no_labels=cls.no_labels),
            SAMPLE_WEIGHT,
        )

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """As of a discriminator."""
        Binary.check(options)


@task("lsgan_generator")
class LeastSquaresGenerated(Generated):
    """Scores of generated samples alone, by a discriminator trained to 1 for real samples and 0 for these."""

    activation: ClassVar[str] = "score"
    no_labels: ClassVar[str] = ""

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Every threshold is a score."""


@metric("gan_generator", "lsgan_generator", default=True, reads=("taken",), interval="unit")
def fooled(task: Generated) -> Sequence[Any]:
    """The fraction of generated samples that the discriminator classifies as real."""
    return task.quotients("fooled", *task.taken)
