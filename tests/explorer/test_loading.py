"""How a view loads, far from the service: few requests, and few that wait for each other."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from .conftest import drawn

LATENCY_MS = 100


def loaded(visit, service, path: str, wait) -> tuple[list[str], int]:
    """What a cold load of a view requests, and how many of the requests wait for each other."""
    page = visit("/nowhere")
    client = page.context.new_cdp_session(page)
    client.send("Network.enable")
    client.send("Network.setCacheDisabled", {"cacheDisabled": True})
    client.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": LATENCY_MS, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    sent: dict[str, tuple[str, float]] = {}
    ended: dict[str, float] = {}

    def begin(event) -> None:
        sent[event["requestId"]] = urlsplit(event["request"]["url"]).path, event["timestamp"]

    client.on("Network.requestWillBeSent", begin)
    client.on("Network.loadingFinished", lambda event: ended.__setitem__(event["requestId"], event["timestamp"]))
    page.goto("about:blank")
    sent.clear()
    page.goto(f"{service.url}/#{path}")
    wait(page)
    spans = sorted(
        (begun, ended[key], re.sub(r"^/explorer/\w+/", "", at)) for key, (at, begun) in sent.items() if key in ended
    )
    spans = [span for span in spans if not span[2].startswith("/health")]  # which is asked again and again
    depth: list[int] = []
    for begun, _, _ in spans:
        depth.append(
            1 + max((depth[i] for i, (_, end, _) in enumerate(spans[: len(depth)]) if end <= begun), default=0)
        )
    data = [depth[i] for i, (_, _, at) in enumerate(spans) if at.startswith("/v1/")]
    return [at for _, _, at in spans if "font" not in at], max(data)


def test_the_landscape_needs_few_requests_and_few_round_trips(visit, service) -> None:
    requests, depth = loaded(visit, service, "/landscape", lambda page: page.wait_for_selector(".land[data-drawn]"))
    assert sorted(requests) == [
        "/",
        "/v1/evaluate",
        *("/v1/losses", *(f"/v1/losses/{name}/descent.json" for name in ("huber", "mae", "mse"))),
        *("app.css", "app.pack.js", "early.js", "landscape.pack.js"),
        *("vendor/uplot/uPlot.iife.min.js", "vendor/uplot/uPlot.min.css"),
    ]
    # Page, shell and its pack, catalogue, data; one more where a slow machine runs the shell after the pack has come.
    assert depth <= 5


def test_a_loss_s_page_needs_few_round_trips(visit, service) -> None:
    requests, depth = loaded(visit, service, "/losses/focal?with=", drawn)
    assert len([at for at in requests if at.endswith(".pack.js")]) == 2
    assert depth <= 6
