from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from functools import cache
from typing import Any

import numpy as np
import pytest

from lossd.pictures.plots import DARK, DASHES, KINDS, LIGHT, Theme, draw

SVG = "{http://www.w3.org/2000/svg}"
LINE = {"name": "a", "parameters": {}, "case": None, "gradient_of": "x"}
DOCUMENTS: dict[str, dict[str, Any]] = {
    "curve": {
        "axis": "x", "axes": ["x"], "label": "what it is", "x": [0.0, 1.0, 2.0],
        "series": [
            {**LINE, "label": "one & <two>", "loss": [0, 1, 4], "gradient": [0, 2, 4]},
            {**LINE, "label": "$three$", "loss": ["Infinity", 1, "NaN"], "gradient": [1, 1, 1]},
        ],
    },
    "confusion": {"confusion_matrix": [[5, 1, 0], [0, 4, 0], [2, 0, 0]]},
    "roc": {"roc_curve": {"fpr": [0, 0, 1], "tpr": [0, 0.5, 1], "thresholds": []}, "auroc": 0.75},
    "pr": {
        "pr_curve": [{"precision": [0.5, 1], "recall": [1, 0]}, None],
        "average_precision": {"per_class": [0.5, None]},
    },
    "reliability": {
        "reliability": {"confidence": [0.1, None, 0.9], "accuracy": [0.2, None, 0.8], "count": [5, 0, 7]},
        "ece": 0.1,
    },
    "slices": {
        "metric": "f1.macro", "level": 0.95, "all": {"value": 0.8, "low": 0.75, "high": 0.85},
        "slices": [
            {"label": "site=B", "rows": 1200, "value": 0.7, "low": 0.6, "high": 0.78},
            {"label": "site=A", "rows": 40, "value": 0.9, "low": None, "high": None},
        ],
    },
}  # fmt: skip


@cache
def picture(kind: str, theme: Theme) -> bytes:
    """The kind's document, drawn once for all tests."""
    return draw(kind, DOCUMENTS[kind], theme=theme)


def text(svg: bytes) -> set[str]:
    return {element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def test_every_kind_is_tested() -> None:
    assert DOCUMENTS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theme", ["auto", "light", "dark"])
def test_a_picture_is_an_svg_that_says_what_it_shows(kind: str, theme: Theme) -> None:
    svg = picture(kind, theme)
    root = ElementTree.fromstring(svg)
    title, description = (root.find(f"{SVG}{name}") for name in ("title", "desc"))
    assert title is not None
    assert description is not None
    assert len(title.text or "") > 3
    assert len(description.text or "") > 20
    assert theme != "auto" or svg == draw(kind, DOCUMENTS[kind], theme=theme), "deterministic"
    assert not re.search(rb"<script|\son\w+=|javascript:|<!DOCTYPE", svg)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_a_png(kind: str) -> None:
    assert draw(kind, DOCUMENTS[kind], form="png").startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", KINDS)
def test_every_colour_has_its_other_in_the_dark(kind: str) -> None:
    """A picture for any reader has the light colours, each with a rule for dark readers."""
    used = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", picture(kind, "light").decode()))
    assert used <= {*LIGHT[:4], *LIGHT.lines}
    dark = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", picture(kind, "dark").decode()))
    assert dark <= {*DARK[:4], *DARK.lines}
    auto = picture(kind, "auto").decode()
    rules = dict(re.findall(r'\[style\*="(?:fill|stroke): (#\w+)"\]\{(?:fill|stroke):(#\w+)!important\}', auto))
    assert {rules[colour] for colour in used} == dark


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_can_be_seen(palette: Any) -> None:
    for colour, least in ((palette.ink, 7.0), (palette.muted, 4.5), *((line, 4.5) for line in palette.lines)):
        lighter, darker = sorted((luminance(colour), luminance(palette.paper)), reverse=True)
        assert (lighter + 0.05) / (darker + 0.05) >= least, colour


def test_no_two_of_twelve_lines_look_alike() -> None:
    count = 12
    looks = {(i % len(LIGHT.lines), i % len(DASHES)) for i in range(count)}
    assert len(looks) == count


def test_labels_are_what_they_say() -> None:
    """Neither markup nor mathematics."""
    svg = picture("curve", "auto")
    assert {"one & <two>", "$three$", "what it is"} <= text(svg)


def test_a_confusion_matrix_shows_its_counts() -> None:
    svg = picture("confusion", "auto")
    assert {"5", "4"} <= text(svg)
    assert b"3 classes, 12 predictions, of which 0.75 are right" in svg


def test_curves_name_their_areas() -> None:
    assert "area 0.75" in text(picture("roc", "auto"))
    assert "label 0 area 0.5" in text(picture("pr", "auto"))


def test_slices_stand_in_the_order_given_with_their_rows() -> None:
    svg = picture("slices", "auto")
    assert {"site=B  (1,200 rows)", "site=A  (40 rows)", "f1.macro, 95 % intervals"} <= text(svg)
    assert b"all rows: 0.8 (0.75 to 0.85); site=B: 0.7 (0.6 to 0.78); site=A: 0.9." in svg


@pytest.mark.parametrize(
    ("kind", "document", "message"),
    [
        ("roc", {"roc_curve": None, "auroc": None}, "all targets are of one kind"),
        ("confusion", {"confusion_matrix": np.eye(65).tolist()}, "65 classes cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_said(kind: str, document: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(kind, document)
