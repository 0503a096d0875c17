"""A table that is wider than a phone shows that there is more of it."""

from __future__ import annotations

STATES = """() => [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth + 1)
  .map((e) => ({more: e.dataset.more, mask: getComputedStyle(e).maskImage}))"""


def test_a_wide_table_fades_out_where_it_goes_on(visit) -> None:
    page = visit("/losses/focal", size=(390, 844), again=True)
    page.get_by_text("Table of values").click()
    page.wait_for_selector(".numbers tbody tr")
    page.wait_for_function(f"() => ({STATES})().some(({{more}}) => more === 'right')")
    states = page.evaluate(STATES)
    assert all(state["mask"].startswith("linear-gradient(to left") for state in states if state["more"] == "right")
    page.evaluate("() => { for (const e of document.querySelectorAll('.scroll')) e.scrollLeft = 1e6; }")
    page.wait_for_function(f"() => ({STATES})().every(({{more}}) => more === 'left')")
    assert all(state["mask"].startswith("linear-gradient(to right") for state in page.evaluate(STATES))


def test_a_table_that_fits_is_shown_whole(visit) -> None:
    page = visit("/losses/focal", size=(1280, 860), again=True)
    page.get_by_text("Table of values").click()
    page.wait_for_selector(".numbers tbody tr")
    masks = page.evaluate(
        """() => [...document.querySelectorAll(".scroll")].filter((e) => e.scrollWidth <= e.clientWidth)
        .map((e) => getComputedStyle(e).maskImage)"""
    )
    assert masks
    assert set(masks) == {"none"}
