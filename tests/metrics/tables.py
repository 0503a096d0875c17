"""THE TABLE: a task's metrics and their oracles, and the requests they are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import sklearn

from metrics import oracles, oracles_compared, oracles_queries, oracles_regression, oracles_scoring, samples
from metrics.measuring import Array, Request

Ingredients = dict[str, Array]


def scores_and_classes(seed: int, classes: int = 5) -> Iterator[tuple[str, Ingredients]]:
    """What can happen to a classification of rows: names, scores (n, C) in float32 and targets (n,)."""
    rng = np.random.default_rng(seed)

    def drawn(n: int, among: list[int]) -> Ingredients:
        return {
            "prediction": rng.normal(size=(n, classes)).astype(np.float32),
            "target": rng.choice(among, size=n).astype(np.int64),
        }

    every = list(range(classes))
    yield "ordinary", drawn(40, every)
    yield "two classes absent from the target", drawn(30, [0, 2, 4])
    one = drawn(12, [3])
    yield "one class in the target", one
    never = drawn(25, every)
    never["prediction"][:, [1, 2]] = -9
    yield "two classes never predicted", never
    neither = drawn(25, [0, 1, 2])
    neither["prediction"][:, 4] = -9
    yield "a class in neither", neither
    perfect = drawn(20, every)
    perfect["prediction"][np.arange(20), perfect["target"]] = 9
    yield "perfect", perfect
    wrong = drawn(20, every)
    wrong["prediction"][np.arange(20), (wrong["target"] + 1) % classes] = 9
    yield "all wrong", wrong
    apart = drawn(10, [2])
    apart["prediction"][:, 3] = 9
    yield "one class, always taken for another", apart
    alone = drawn(10, [2])
    alone["prediction"][:, 2] = 9
    yield "one class, always found", alone
    ties = drawn(40, every)
    # Whole numbers tie within a row, repeated rows between rows; the factors keep other rows' softmax clear of theirs.
    rows = ties["prediction"][:8].round() * (1 + np.arange(8, dtype=np.float32)[:, None] / 8)
    ties["prediction"] = rows[rng.integers(0, 8, size=40)]
    yield "ties", ties
    flat = drawn(10, every)
    flat["prediction"][:] = 0.25
    yield "all scores equal", flat
    yield "one sample", drawn(1, every)


def images_and_classes(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Scores (n, 3, 4, 2) and targets (n, 4, 2); classes missing from single images and from all."""
    rng = np.random.default_rng(seed)
    for title, n, among in (("ordinary", 6, [0, 1, 2]), ("a class absent", 5, [0, 2]), ("one image", 1, [0, 1, 2])):
        target = rng.choice(among, size=(n, 4, 2)).astype(np.int64)
        target[0] = among[0]
        yield title, {"prediction": rng.normal(size=(n, 3, 4, 2)).astype(np.float32), "target": target}
    mean = rng.dirichlet(np.ones(3), size=(5, 4, 2)).astype(np.float32)
    soft = np.ascontiguousarray(np.moveaxis(mean, -1, 1))
    yield "ordinary again", {"prediction": rng.normal(size=soft.shape).astype(np.float32), "target": soft.argmax(1)}


def decisions(seed: int, inner: tuple[int, ...]) -> Iterator[tuple[str, Ingredients]]:
    """Logits (n, *inner) and targets of the same shape."""
    rng = np.random.default_rng(seed)

    def drawn(n: int, chance: float = 0.5) -> Ingredients:
        logits = rng.normal(size=(n, *inner)).astype(np.float32)
        return {"prediction": logits, "target": (rng.random((n, *inner)) < chance).astype(np.float32)}

    yield "ordinary", drawn(30)
    yield "rarely positive", drawn(20, 0.05)
    yield "never positive", drawn(8, 0)
    yield "always positive", drawn(8, 1)
    silent = drawn(12)
    silent["prediction"] = -abs(silent["prediction"]) - 1
    yield "never found", silent
    eager = drawn(12)
    eager["prediction"] = abs(eager["prediction"]) + 1
    yield "found everywhere", eager
    perfect = drawn(12)
    perfect["prediction"] = (perfect["target"] * 4 - 2).astype(np.float32)
    yield "perfect", perfect
    yield "all wrong", {**perfect, "prediction": -perfect["prediction"]}
    nothing = drawn(6, 0)
    nothing["prediction"][:] = -3
    yield "nothing there, nothing found", nothing
    soft = drawn(20)
    soft["target"] = rng.random(soft["target"].shape).astype(np.float32)
    soft["target"].flat[0] = 0.5
    yield "soft targets", soft
    ties = drawn(30)
    ties["prediction"] = ties["prediction"].round()
    yield "ties", ties
    yield "one sample", drawn(1)


def numbers(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Predictions and targets (n, 3)."""
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> Ingredients:
        target = rng.normal(size=(n, 3)) * 2 + 1
        return {"prediction": target + rng.normal(size=(n, 3)) * 0.5, "target": target}

    yield "ordinary", drawn(20)
    yield "constant target", {**drawn(7), "target": np.full((7, 3), 0.1)}
    yield "constant prediction", {**drawn(7), "prediction": np.full((7, 3), 0.1)}
    same = drawn(9)
    yield "perfect", {**same, "prediction": same["target"].copy()}
    yield "far from zero", {name: value + 1e6 for name, value in drawn(15).items()}
    yield "positive", {name: np.exp(value) for name, value in drawn(20).items()}
    rate = np.exp(rng.normal(size=(20, 3)))
    yield "counts", {"prediction": rate, "target": rng.poisson(rate).astype(float)}
    zeros = drawn(8)
    zeros["prediction"][::2] = zeros["target"][::3] = 0
    yield "rows of zeros", zeros
    yield "ties", {name: value.round() for name, value in drawn(20).items()}
    yield "one sample", drawn(1)


def pairs(seed: int, different: int) -> Iterator[tuple[str, Ingredients]]:
    """Embeddings (n, 3) in pairs, and whether they are similar: 1, or what says that they are not."""
    rng = np.random.default_rng(seed)

    def drawn(n: int, chance: float = 0.5) -> Ingredients:
        similar = rng.random(n) < chance
        first = rng.normal(size=(n, 3)).astype(np.float32)
        noise = rng.normal(size=(n, 3)) * np.where(similar, 0.25, 0.9)[:, None]
        return {
            "first": first,
            "second": (first + noise).astype(np.float32),
            "similar": np.where(similar, 1, different).astype(np.int64),
        }

    yield "ordinary", drawn(40)
    yield "none similar", drawn(9, 0)
    yield "all similar", drawn(9, 1)
    same = drawn(12)
    yield "identical", {**same, "second": same["first"]}
    far = drawn(12)
    yield "far apart", {**far, "second": -5 * far["first"]}
    zero = drawn(12)
    zero["first"][::3] = 0
    yield "zero vectors", zero
    yield "one pair", drawn(1)


def distances(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Distances (n, 2) and signs; ties, and none that are similar."""
    rng = np.random.default_rng(seed)
    for title, n, chance, digits in (
        ("ordinary", 20, 0.5, 9),
        ("ties", 20, 0.5, 1),
        ("none similar", 6, 0, 9),
        ("one", 1, 1, 9),
    ):
        sign = np.where(rng.random((n, 2)) < chance, 1, -1)
        yield title, {"prediction": rng.random((n, 2)).round(digits), "target": sign}


def adversaries(seed: int, centre: float) -> Iterator[tuple[str, Ingredients]]:
    """Scores of as many real as fake samples: stacked requests have as many of each as every other."""
    rng = np.random.default_rng(seed)
    for title, lift, digits in (("ordinary", 0.5, 9), ("ties", 0.5, 0), ("told apart", 5, 9), ("taken in", -5, 9)):
        real, fake = (centre + sign * lift + rng.normal(size=(12, 2)) for sign in (1, -1))
        yield title, {"real": real.round(digits), "fake": fake.round(digits)}


def generated(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Scores of fake samples alone."""
    rng = np.random.default_rng(seed)
    for title, centre in (("ordinary", 0.3), ("never fooled", -9), ("always fooled", 9)):
        yield title, {"fake": centre + rng.normal(size=(7, 2))}


def label_sets(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Scores (n, 4) and the indices of what applies, then -1, then what does not matter."""
    rng = np.random.default_rng(seed)
    for title, n in (("ordinary", 25), ("a few", 4), ("one", 1)):
        target = np.full((n, 4), -1)
        for row in target:
            several = rng.permutation(4)[: rng.integers(1, 4)]
            row[: len(several)] = several
            row[len(several) + 1 :] = 0
        yield title, {"prediction": rng.normal(size=(n, 4)).astype(np.float32), "target": target}


def triplets(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Embeddings (n, 3) in threes."""
    rng = np.random.default_rng(seed)
    for title, n, noise in (("ordinary", 30, 0.8), ("easy", 10, 0.1), ("one", 1, 0.5)):
        anchor, negative = rng.normal(size=(2, n, 3))
        yield title, {"anchor": anchor, "positive": anchor + noise * rng.normal(size=(n, 3)), "negative": negative}
    anchor = rng.normal(size=(5, 3))
    yield "ties", {"anchor": anchor, "positive": anchor, "negative": anchor}


def orders(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Two scores each, and which should be higher."""
    rng = np.random.default_rng(seed)
    for title, n, digits in (("ordinary", 20, 9), ("ties", 20, 0), ("one", 1, 9)):
        first, second = rng.normal(size=(2, n, 2)).round(digits)
        yield title, {"first": first, "second": second, "target": rng.choice([-1, 1], (n, 2))}


def rankings(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Scores and grades (n, 5) of the documents of queries."""
    rng = np.random.default_rng(seed)
    for title, n, digits, chance in (
        ("ordinary", 20, 9, 0.6), ("ties", 20, 0, 0.6), ("one score", 3, -2, 0.6), ("few relevant", 20, 0, 0.1),
        ("none relevant", 4, 9, 0.0), ("one", 1, 9, 1.0),
    ):  # fmt: skip
        target = rng.integers(1, 4, (n, 5)) * (rng.random((n, 5)) < chance)
        yield title, {"prediction": rng.normal(size=(n, 5)).round(digits), "target": target.astype(float)}


def preferences(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Rewards of two answers each."""
    rng = np.random.default_rng(seed)
    for title, n, digits in (("ordinary", 20, 9), ("ties", 20, 0), ("one", 1, 9)):
        chosen, rejected = rng.normal(size=(2, n)).round(digits)
        yield title, {"chosen": chosen, "rejected": rejected}


def sampled_tokens(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Log-probabilities (n, 3) of tokens under three models, and advantages."""
    rng = np.random.default_rng(seed)
    for title, n, noise in (("ordinary", 20, 0.4), ("the same policy", 5, 0.0), ("one", 1, 0.4)):
        p = rng.uniform(-3, -0.1, (n, 3))
        sampled, reference = p + noise * rng.normal(size=(2, n, 3))
        yield title, {"prediction": p, "sampled": sampled, "reference": reference, "advantage": rng.normal(size=(n, 3))}


def labelled(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Embeddings (n, 3) and labels; some alone with theirs, some in the same place."""
    rng = np.random.default_rng(seed)
    for title, n, among in (("ordinary", 30, 4), ("some alone", 12, 10), ("one label", 8, 1), ("one", 1, 1)):
        label = rng.integers(0, among, n)
        centre = rng.normal(size=(among, 3))
        yield title, {"embedding": centre[label] + rng.normal(size=(n, 3)) * 0.7, "label": label}
    yield "all alone", {"embedding": rng.normal(size=(6, 3)), "label": np.arange(6) - 3}
    places = rng.normal(size=(4, 3))
    places[0] = 0
    yield "ties", {"embedding": places[rng.integers(0, 4, 24)], "label": rng.integers(0, 4, 24)}


def views(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Two views (n, 3) of the same things."""
    rng = np.random.default_rng(seed)
    for title, n, noise in (("ordinary", 25, 0.5), ("the same", 9, 0), ("one", 1, 0.5)):
        first = rng.normal(size=(n, 3))
        yield title, {"first": first, "second": first + noise * rng.normal(size=(n, 3))}
    places = rng.normal(size=(4, 3))
    places[0] = 0
    yield "ties", {"first": places[rng.integers(0, 4, 16)], "second": places[rng.integers(0, 4, 16)]}


def latents(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Logits and targets (n, 2, 3), and a posterior of five units, of which some do nothing."""
    rng = np.random.default_rng(seed)
    for title, n in (("ordinary", 20), ("one", 1)):
        yield (
            title,
            {
                "prediction": rng.normal(size=(n, 2, 3)),
                "target": rng.random((n, 2, 3)),
                "mean": rng.normal(size=(n, 5)) * np.array([1, 0.5, 0.05, 0.01, 0]) + 3,
                "log_variance": rng.normal(size=(n, 5)),
            },
        )


def boxes(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Boxes by their corners: near each other, apart, one in the other, and without area."""
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> Array:
        corner = rng.random((n, 2)) * 4
        return np.concatenate([corner, corner + rng.random((n, 2)) * 4], 1)

    target = drawn(30)
    yield "near", {"prediction": target + np.array([0.3, 0.2, 0.3, 0.2]), "target": target}
    yield "anywhere", {"prediction": drawn(20), "target": drawn(20)}
    points = np.repeat(rng.random((4, 2)), 2, axis=0).reshape(4, 4)
    yield "points, the same and others", {"prediction": points, "target": points[[0, 1, 3, 2]]}
    yield "one", {"prediction": drawn(1), "target": drawn(1)}


def several(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Three numbers (n, 3, 2) for each target, in order and not."""
    rng = np.random.default_rng(seed)
    for title, n, sort in (("ordered", 20, True), ("in any order", 20, False), ("one", 1, True)):
        drawn = rng.normal(size=(n, 3, 2))
        yield title, {"prediction": np.sort(drawn, 1) if sort else drawn, "target": rng.normal(size=(n, 2))}
    whole = rng.integers(-1, 2, (20, 3, 2)).astype(float)
    yield "at a bound", {"prediction": whole, "target": rng.integers(-1, 2, (20, 2)).astype(float)}


def intervals(seed: int) -> Iterator[tuple[str, Ingredients]]:
    """Bounds and targets (n, 2)."""
    for title, drawn in several(seed):
        predicted = drawn["prediction"]
        yield title, {"lower": predicted[:, 0], "upper": predicted[:, -1], "target": drawn["target"]}


@dataclass(frozen=True)
class Table:
    """A task's metrics, what they are tried on, and how a request becomes what an oracle takes.

    Attributes:
        task: Its name.
        oracles: By the metrics' names.
        requests: Titles and requests, given a seed.
        sample: A request, the ignored class and the options to the oracle's argument.
        ignored: The target that does not count; None where targets cannot be ignored.
        activation: What predictions are.
        poison: The input that a NaN is put into.
        weighted: Whether samples can be weighted.
        within: How far a request among strangers may be from itself alone; 0 where counts are whole numbers.
    """

    task: str
    oracles: Mapping[str, Callable[..., Any]]
    requests: Callable[[int], Iterator[tuple[str, Ingredients]]]
    sample: Callable[..., Any] | None = None
    ignored: int | None = None
    activation: str = "logits"
    poison: str = "prediction"
    weighted: bool = True
    within: float = 0

    def expected(self, request: Request, ignore_index: int | None, **options: Any) -> dict[str, Any]:
        """What each oracle says; it gets what scikit-learn takes, whose checks would take longer than its scores."""
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            if self.sample is not None:
                sample = self.sample(request, ignore_index, **options)
                return {name: oracles.null(oracle(sample)) for name, oracle in self.oracles.items()}
            weight = request.get("sample_weight")
            kept = request if weight is None else {key: value[weight > 0] for key, value in request.items()}
            return {name: oracles.null(oracle(kept, **options)) for name, oracle in self.oracles.items()}


TABLES = (
    Table(
        "multiclass",
        oracles.CLASSES | oracles_scoring.CLASSES,
        scores_and_classes,
        samples.sample_of_classes,
        ignored=-100,
    ),
    Table(
        "segmentation",
        oracles.CLASSES | oracles_scoring.IMAGES,
        images_and_classes,
        samples.sample_of_classes,
        ignored=1,
    ),
    Table(
        "binary",
        oracles.BINARY | oracles_scoring.BINARY,
        partial(decisions, inner=(2,)),
        partial(samples.sample_of_decisions, labels=False),
        ignored=255,
    ),
    Table(
        "multilabel",
        oracles.MULTILABEL | oracles_scoring.MULTILABEL,
        partial(decisions, inner=(3,)),
        partial(samples.sample_of_decisions, labels=True),
    ),
    Table("sets", oracles_compared.SETS | oracles_scoring.MULTILABEL, label_sets, oracles_compared.sample_of_sets),
    Table(
        "regression",
        oracles_regression.REGRESSION | oracles_scoring.REGRESSION,
        numbers,
        samples.sample_of_numbers,
        activation="real",
        within=1e-12,
    ),
    Table(
        "pairs",
        oracles_compared.DISTANCES | oracles_scoring.DECISIONS,
        partial(pairs, different=0),
        oracles_compared.sample_of_pairs,
        poison="first",
    ),
    Table(
        "cosine_pairs",
        oracles_compared.DISTANCES | oracles_scoring.DECISIONS,
        partial(pairs, different=-1),
        oracles_compared.sample_of_cosine_pairs,
        poison="first",
    ),
    Table(
        "distances",
        oracles_compared.DISTANCES | oracles_scoring.DECISIONS,
        distances,
        oracles_compared.sample_of_distances,
    ),
    Table(
        "gan",
        oracles_compared.ADVERSARIAL | oracles_scoring.DECISIONS,
        partial(adversaries, centre=0),
        partial(oracles_compared.sample_of_scores, middle=0),
        poison="real",
        weighted=False,
    ),
    Table(
        "lsgan",
        oracles_compared.ADVERSARIAL | oracles_scoring.DECISIONS,
        partial(adversaries, centre=0.5),
        partial(oracles_compared.sample_of_scores, middle=0.5),
        poison="real",
        weighted=False,
    ),
    Table("gan_generator", oracles_compared.GENERATED, generated, poison="fake"),
    Table("lsgan_generator", oracles_compared.LEAST_SQUARES_GENERATED, generated, poison="fake"),
    Table("triplets", oracles_compared.TRIPLETS, triplets, poison="anchor", within=1e-12),
    Table("ranking", oracles_compared.RANKING, orders, poison="first"),
    Table("queries", oracles_queries.QUERIES, rankings, activation="real", within=1e-12),
    Table("preferences", oracles_compared.PREFERENCES, preferences, poison="chosen", within=1e-12),
    Table("policy", oracles_compared.POLICY, sampled_tokens, within=1e-12),
    Table("labelled_embeddings", oracles_compared.LABELLED, labelled, poison="embedding", weighted=False),
    Table("paired_views", oracles_compared.VIEWS, views, poison="first", weighted=False, within=1e-12),
    Table("vae", oracles_compared.VAE, latents, within=1e-12),
    Table("quantiles", oracles_compared.FORECASTS, several, activation="real", within=1e-12),
    Table("ensembles", oracles_compared.ENSEMBLES, several, activation="real", within=1e-12),
    Table("intervals", oracles_compared.FORECASTS, intervals, activation="real", poison="lower", within=1e-12),
    Table("boxes", oracles_compared.BOXES, boxes, activation="real", within=1e-12),
)
