"""THE TABLE: one row a loss. A loss without a row fails ``test_table.py``."""

from __future__ import annotations

from losses import (
    cases_binary,
    cases_boxes,
    cases_classification,
    cases_distillation,
    cases_embedding,
    cases_forecasts,
    cases_generative,
    cases_likelihoods,
    cases_margin,
    cases_perceptual,
    cases_policy,
    cases_preference,
    cases_queries,
    cases_regression,
    cases_segmentation,
    cases_sequence,
)
from losses.case import Case

FAMILIES = (
    cases_regression,
    cases_likelihoods,
    cases_forecasts,
    cases_binary,
    cases_classification,
    cases_distillation,
    cases_margin,
    cases_sequence,
    cases_segmentation,
    cases_boxes,
    cases_embedding,
    cases_generative,
    cases_perceptual,
    cases_policy,
    cases_preference,
    cases_queries,
)

CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CASES)
