"""How a view loads: with few requests, of which few wait for each other, as far from the service each takes long."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def test_the_landscape_needs_few_requests(visit, service) -> None:
    page = visit("/nowhere")
    page.get_by_text("There is no view at /nowhere").wait_for()  # nothing is being loaded any more
    client = page.context.new_cdp_session(page)
    client.send("Network.enable")
    client.send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.goto("about:blank")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(urlsplit(request.url).path))
    page.goto(f"{service.url}/#/landscape")
    page.wait_for_selector(".land[data-drawn]")
    requests = {re.sub(r"^/explorer/\w+/", "", path) for path in sent if not path.startswith("/health")}
    assert sorted(path for path in requests if not path.endswith((".woff2", ".svg"))) == [
        "/",
        "/v1/evaluate",
        *("/v1/losses", *(f"/v1/losses/{name}/descent.json" for name in ("huber", "mae", "mse"))),
        *("app.css", "app.pack.js", "early.js", "landscape.pack.js"),
        *("vendor/uplot/uPlot.iife.min.js", "vendor/uplot/uPlot.min.css"),
    ]


def test_what_a_view_needs_is_requested_before_its_modules_and_the_shell_are_there(visit, service) -> None:
    page = visit("/nowhere")
    page.get_by_text("There is no view at /nowhere").wait_for()  # nothing is being loaded any more
    page.goto("about:blank")
    held = {}

    def hold(route) -> None:
        held[route.request.url.rsplit("/", 1)[1]] = route

    page.route("**/*.pack.js", hold)
    page.goto(f"{service.url}/#/landscape", wait_until="commit")
    while held.keys() != {"app.pack.js", "landscape.pack.js"}:  # the view's is requested while the shell is held
        page.wait_for_timeout(10)
    with page.expect_request("**/v1/losses"), page.expect_request("**/uPlot.iife.min.js"):
        held["app.pack.js"].continue_()  # the view's is held still
    held["landscape.pack.js"].continue_()
    page.wait_for_selector(".land[data-drawn]")
