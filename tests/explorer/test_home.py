"""The home page: what the service does, where to go, and the same on paper."""

from __future__ import annotations

import json
import re

import httpx
import pytest

from lossd.losses import REGISTRY

MAX_BYTES = 200_000


def opened(visit, **options):
    page = visit("/losses", **options)
    page.wait_for_selector(".thumb.drawn")
    return page


def test_it_says_what_the_service_does_and_has_a_request_that_works(visit, service) -> None:
    page = opened(visit, again=True)
    lead = page.locator(".hero p").first.inner_text()
    for word in ("loss", "gradient", "metrics", "HTTP"):
        assert word in lead
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    url, body = re.findall(r"curl -s (\S+)", command)[0], re.findall(r"-d '(.*)'", command)[0]
    assert url == f"{service.url}/v1/evaluate"
    assert httpx.post(url, json=json.loads(body)).json()["loss"] > 0


@pytest.mark.parametrize(("door", "heading"), [("Explore", "focal"), ("Your data", "Try it")])
def test_doors_lead_into_the_views(visit, door: str, heading: str) -> None:
    page = opened(visit, again=True)
    page.locator(".doors a", has_text=door).click()
    page.wait_for_function("name => document.querySelector('h1')?.textContent === name", arg=heading)


def test_a_door_leads_to_the_documentation(visit, service) -> None:
    page = opened(visit, again=True)
    href = page.locator(".doors a", has_text="Docs").get_attribute("href")
    assert httpx.get(f"{service.url}/{href}", follow_redirects=True).status_code == 200


def test_a_family_s_chip_leads_to_the_family(visit) -> None:
    page = opened(visit, again=True)
    page.get_by_role("navigation", name="Families").get_by_role("button", name="Boxes").click()
    page.wait_for_function("() => document.activeElement.textContent.startsWith('Boxes')")
    assert 0 <= page.locator("h2", has_text="Boxes").bounding_box()["y"] < 860
    page.get_by_role("searchbox").fill("giou")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.chips button')].filter((b) => !b.hidden).length === 1"
    )


def test_back_from_a_loss_keeps_the_place_in_the_list(visit) -> None:
    page = opened(visit, again=True)
    page.get_by_role("link", name="dice", exact=True).scroll_into_view_if_needed()
    page.wait_for_function("() => scrollY > 500")
    before = page.evaluate("scrollY")
    page.get_by_role("link", name="dice", exact=True).click()
    page.wait_for_function("() => document.querySelector('h1')?.textContent === 'dice'")
    page.go_back()
    page.wait_for_function("y => Math.abs(scrollY - y) < 2", arg=before)


def test_every_card_is_drawn_on_paper_and_colours_stay(visit) -> None:
    page = opened(visit, theme="dark", again=True)
    page.emulate_media(media="print", color_scheme="dark")
    available = sum(loss.unavailable() is None for loss in REGISTRY.values())
    page.wait_for_function("n => document.querySelectorAll('.thumb.drawn').length >= n", arg=available)
    style = "(name) => getComputedStyle(document.body)[name]"
    assert page.evaluate(style, "backgroundColor") == "rgb(250, 249, 246)"  # light, whatever the theme
    assert page.evaluate(style, "printColorAdjust") == "exact"
    assert not page.locator(".bar").is_visible()


def test_the_page_weighs_little(visit, service) -> None:
    page = visit("/nowhere")
    client = page.context.new_cdp_session(page)
    client.send("Network.enable")
    client.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[float] = []
    client.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto("about:blank")
    page.goto(f"{service.url}/#/losses")
    page.wait_for_selector(".thumb.drawn")
    page.wait_for_load_state("networkidle")
    assert 50_000 < sum(sizes) <= MAX_BYTES
