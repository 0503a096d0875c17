"""The table and the registry agree, and every row says what it must."""

from __future__ import annotations

from lossd.losses import REGISTRY
from losses.case import Case
from losses.cases import CASES
from losses.cases_composed import COMPOSITIONS
from rows import in_one_item


def test_table_and_registry_hold_the_same_names() -> None:
    assert {case.name for case in CASES} | {row.name for row in COMPOSITIONS} == set(REGISTRY)


@in_one_item("name", dict.fromkeys(case.name for case in CASES))
def test_the_rows_of_a_loss_name_all_of_its_parameters(name: str) -> None:
    rows = [case for case in CASES if case.name == name]
    named = {key for case in rows for parameters in case.parameters for key in parameters} | {
        key for case in rows for key in case.vary
    }
    assert named - {"reduction"} == {parameter.name for parameter in REGISTRY[name].parameters}


@in_one_item("case", CASES)
def test_a_row_varies_every_number(case: Case) -> None:
    assert set(case.vary) == {parameter.name for parameter in REGISTRY[case.name].parameters if parameter.varies}


@in_one_item("case", CASES)
def test_a_row_refuses_something(case: Case) -> None:
    assert case.refused


@in_one_item("loss", REGISTRY.values())
def test_a_loss_is_documented(loss) -> None:
    assert loss.summary.endswith(".")
    assert loss.formula
    assert loss.references
    assert all(part.summary.endswith((".", ")")) for part in (*loss.inputs, *loss.parameters))
