"""The search in the catalogue: our names, those of other libraries, beginnings, words, misspelt names."""

from __future__ import annotations

from typing import Any

import pytest

from lossd.api.search import MAX_CHARACTERS, search
from lossd.losses.families import by_family
from lossd.losses.names import METRICS, NOT_HERE, NOT_QUITE, SYNONYMS


def found(http, query: str) -> dict[str, Any]:
    answer = http.get("/v1/losses", params={"q": query})
    assert answer.status_code == 200
    return answer.json()


def names(answer: dict[str, Any]) -> list[str]:
    return [entry["name"] for entry in answer["losses"]]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("huber", "huber"),
        ("Huber", "huber"),
        ("HuberLoss", "huber"),
        ("l1", "mae"),
        ("L1Loss", "mae"),
        ("torch.nn.SmoothL1Loss", "smooth_l1"),
        ("l2_loss", "mse"),
        ("KLDivergence", "kl_div"),
        ("BinaryCrossentropy(from_logits)", "bce_with_logits"),
        ("BinaryCrossentropy", "bce"),
        ("SparseCategorical", "cross_entropy"),
        ("SparseCategoricalCrossentropy", "cross_entropy"),
        ("MONAI Contrastive", "nt_xent"),
        ("NTXent", "nt_xent"),
        ("symmetric MNR", "clip"),
        ("BatchHardTripletLoss", "mined_triplet"),
        ("SoftTargetCrossEntropy", "cross_entropy"),
        ("generalized_box_iou", "giou"),
        ("adversarial least_squares", "lsgan_discriminator"),
        ("adversarial hinge", "hinge_gan_discriminator"),
        ("content loss", "perceptual"),
        ("pinball", "quantile"),
        ("xentropy", "bce_with_logits"),
        ("multiclassova", "bce_with_logits"),
        ("RMSEWithUncertainty", "gaussian_nll"),
        ("rmse with uncertainty", "gaussian_nll"),
        ("foc", "focal"),
        ("generalized", "generalized_dice"),
        ("rezatofighi", "giou"),
        ("crossentrpy", "cross_entropy"),
    ],
)
def test_a_loss_is_found_first_by(query: str, first: str) -> None:
    assert search(query).losses[0].name == first


@pytest.mark.parametrize(
    ("query", "metric"),
    [
        ("threat score", "iou"),
        ("ThreatScore", "iou"),
        ("Dice metric", "f1"),
        ("sensitivity", "recall"),
        ("TopKCategoricalAccuracy", "top_k_accuracy"),
        ("f1", "f1"),
    ],
)
def test_a_metric_is_found_by(http, query: str, metric: str) -> None:
    answer = found(http, query)
    assert answer["metrics"][0]["name"] == metric
    assert answer["metrics"][0]["summary"]
    assert metric not in names(answer), "the loss of that name is something else"


def test_a_metric_s_name_finds_no_loss_that_is_spelled_like_it(http) -> None:
    assert names(found(http, "threat score")) == []
    assert names(found(http, "sensitivity")) == []


def test_what_is_found_is_ranked(http) -> None:
    """The name itself, another library's name, beginnings, words of the name, words of the page."""
    ranked = names(found(http, "dice"))
    assert ranked[0] == "dice"
    assert set(ranked[1:4]) == {"bce_dice", "ce_dice", "generalized_dice"}
    ranked = names(found(http, "ce"))
    assert ranked[0] == "cross_entropy"
    assert ranked[1] == "ce_dice"
    assert ranked.index("ce_dice") < ranked.index("bce") < ranked.index("mse")


def test_every_name_of_the_tables_finds_what_it_says() -> None:
    wrong = []
    for name in (*SYNONYMS, *NOT_QUITE):
        for spelled in (name, name.replace("_", " "), name.title().replace("_", "") + "Loss"):
            result = search(spelled)
            first, note = result.losses[0].name, result.note
            if name in SYNONYMS:
                right = (first, note) == (SYNONYMS[name], "")
            else:
                right = note == NOT_QUITE[name] and first in note
            if not right:
                wrong.append((spelled, first, note))
    for name, metric in METRICS.items():
        if (found := search(name).metrics)[:1] != [metric]:
            wrong.append((name, found, ""))
    assert not wrong


@pytest.mark.parametrize("name", ["huber_loss", next(iter(NOT_QUITE)), next(iter(METRICS))])
def test_what_is_found_is_what_is_answered(http, name: str) -> None:
    result, answered = search(name), found(http, name)
    assert names(answered) == [loss.name for loss in result.losses]
    assert list(dict.fromkeys(entry["name"] for entry in answered["metrics"])) == result.metrics
    assert answered["note"] == (result.note or None)


def test_what_is_not_here_is_not_found(http) -> None:
    for name, note in NOT_HERE.items():
        assert found(http, name.upper()) == {"losses": [], "metrics": [], "note": note}
    assert found(http, "xyzzy") == {"losses": [], "metrics": [], "note": None}
    assert found(http, "@@\x00\u00e9\u202e") == {"losses": [], "metrics": [], "note": None}


def test_entries_are_those_of_the_catalogue_and_nothing_asked_finds_all(http) -> None:
    every = http.get("/v1/losses").json()
    huber = http.get("/v1/losses/huber").json()
    assert huber.pop("guide")
    assert found(http, "huber")["losses"][0] == huber
    for blank in ("", "  "):
        assert found(http, blank) == every
    in_order = [loss.name for losses in by_family().values() for loss in losses]
    assert [entry["name"] for entry in every["losses"]] == in_order


def test_a_query_has_a_length(http) -> None:
    assert http.get("/v1/losses", params={"q": "x" * MAX_CHARACTERS}).status_code == 200
    refused = http.get("/v1/losses", params={"q": "x" * (MAX_CHARACTERS + 1)})
    assert refused.status_code == 422
    assert "at most 200 characters" in refused.json()["detail"]
