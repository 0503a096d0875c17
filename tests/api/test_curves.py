from __future__ import annotations

import asyncio
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from lossd import caches
from lossd.api import curves, drawing
from lossd_client.errors import QueueFull
from serving import Running, running

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Draws as long as it takes: on a busy machine, 2 s of CPU time take more than the 30 s that clients wait."""
    with pytest.MonkeyPatch.context() as patch, running(compiled=False) as service:
        patch.setattr(drawing, "DRAWING_S", 250.0)
        yield service


def get(service: Running, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{service.url}/v1/losses/{path}", headers=headers, timeout=280)


def test_the_document_has_a_series_for_each_value(service: Running) -> None:
    document = get(service, "focal/curve.json?gamma=0&gamma=2&with=cross_entropy").json()
    assert [series["label"] for series in document["series"]] == ["focal, gamma 0", "focal, gamma 2", "cross_entropy"]
    p = np.array(document["x"])
    assert document["label"] == "probability of the true class"
    np.testing.assert_allclose(document["series"][1]["loss"], -((1 - p) ** 2) * np.log(p), atol=1e-6)
    np.testing.assert_allclose(document["series"][2]["gradient"], p - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "loss"),
    [
        ("dice/curve.json?smooth=0&points=20", lambda x: 1 - x),  # a request for each point, more than go at a time
        ("expression/curve.json?formula=abs(prediction%20-%20target)&points=5", abs),
        ("bce_dice/curve.json?smooth=0&points=4", lambda x: 1 - x - np.log(x)),
        ("cross_entropy/curve.json?class_weight=3,1&points=9&x=margin", lambda m: 3 * np.log1p(np.exp(-m))),
        ("huber/curve.json?delta=5&low=-9&high=9", lambda e: np.where(abs(e) < 5, e**2 / 2, 5 * abs(e) - 12.5)),
    ],
)
def test_the_points_are_what_the_service_answers(path: str, loss: object, service: Running) -> None:
    document = get(service, path).json()
    assert callable(loss)
    np.testing.assert_allclose(document["series"][0]["loss"], loss(np.array(document["x"])), rtol=1e-5, atol=1e-6)
    service.wait_until(lambda engine: engine.in_progress == 0)


def test_an_svg_is_text_with_a_title_and_without_a_script(service: Running) -> None:
    answer = get(service, "focal/curve.svg?gamma=0&gamma=2")
    assert answer.headers["content-type"] == "image/svg+xml"
    root = ElementTree.fromstring(answer.content)
    assert root.get("role") == "img"
    named = {element.get("id"): element.text or "" for element in root if element.tag in (f"{SVG}title", f"{SVG}desc")}
    assert [*named] == (root.get("aria-labelledby") or "").split()
    assert named["title"] == "focal over probability of the true class"
    assert "focal, gamma 2: loss" in named["desc"]
    words = {element.text for element in root.iter(f"{SVG}text")}
    assert {"focal, gamma 0", "focal, gamma 2", "loss", "probability of the true class"} <= words
    assert not list(root.iter(f"{SVG}script"))
    assert not [name for element in root.iter() for name in element.keys() if name.startswith("on")]  # noqa: SIM118
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_theme_is_the_reader_s_unless_it_is_named(service: Running) -> None:
    auto, light, dark = (
        get(service, f"mse/curve.svg?points=9{theme}").text for theme in ("", "&theme=light", "&theme=dark")
    )
    assert "prefers-color-scheme:dark" in auto
    assert "prefers-color-scheme" not in light + dark
    assert ("#ffffff" in light, "#ffffff" in dark) == (True, False)


def test_what_a_request_says_is_text_in_the_picture(service: Running) -> None:
    """No markup and no formula of matplotlib's own."""
    assert get(service, "expression/curve.svg?formula=%3Cscript%3Ealert(1)%3C/script%3E").status_code == 422
    answer = get(service, "expression/curve.svg?formula=square(prediction-target)*(1%3C2)&points=5")
    assert "square(prediction-target)*(1&lt;2)" in answer.text


def test_a_png_is_a_picture(service: Running) -> None:
    answer = get(service, "mse/curve.png?points=9")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG\r\n\x1a\n")


def test_the_same_address_is_drawn_once(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "mse/curve.svg?points=9"
    first = get(service, path)
    monkeypatch.setattr(drawing, "_draw", None)  # not called again
    again = get(service, path)
    assert again.content == first.content
    assert "max-age=" in first.headers["cache-control"]
    unchanged = get(service, path, **{"If-None-Match": first.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_equal_documents_give_equal_bytes(service: Running) -> None:
    one, other = (get(service, f"mse/curve.svg?points={points}") for points in ("9", "09"))
    assert one.content == other.content, "drawn by two processes"
    assert one.headers["etag"] == other.headers["etag"]


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("focul/curve.svg", 404, "did you mean focal?"),
        ("ctc/curve.svg", 422, "ctc has no curve: it depends on every path"),
        ("focal/curve.svg?gamma=-1", 422, "gamma"),
        ("focal/curve.json?gama=1", 422, "gama"),
        ("focal/curve.png?with=mse", 422, "mse cannot be drawn along 'probability', only along error"),
        ("focal/curve.png?x=error", 422, "x can be probability or margin"),
        ("focal/curve.svg?theme=pink", 422, "'dark'"),
        ("focal/curve.svg?points=many", 422, "integer"),
        ("focal/curve.pdf", 422, "'svg', 'png' or 'json'"),
        ("cross_entropy/curve.svg?class_weight=[1,2,3]", 422, "class_weight has 3 entries"),
    ],
)
def test_what_cannot_be_drawn_is_a_problem(path: str, status: int, detail: str, service: Running) -> None:
    answer = get(service, path)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, detail in answer.json()["detail"]) == (status, True), answer.text
    service.wait_until(lambda engine: engine.in_progress == 0)


def test_requests_are_answered_while_a_picture_is_drawn(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slowly(kind: str, document: bytes, form: str, theme: str) -> bytes:
        begun.set()
        assert may_end.wait(30)
        return b"<svg/>"

    monkeypatch.setattr(drawing, "_draw", slowly)
    thread = threading.Thread(target=get, args=(service, "quantile/curve.svg?points=7"))
    thread.start()
    assert begun.wait(30)
    body = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}, "outputs": ["loss"]}
    assert httpx.post(f"{service.url}/v1/evaluate", json=body, timeout=25).json()["loss"] == 4.0
    assert thread.is_alive(), "the picture was not finished first"
    may_end.set()
    thread.join()


def test_only_so_many_wait_for_their_turn() -> None:
    running: list[int] = []

    async def ask() -> list[BaseException | None]:
        line, may_end = drawing.BoundedQueue(3, "images"), asyncio.Event()

        async def one(number: int) -> None:
            async with line.wait():
                running.append(number)
                await may_end.wait()
                assert len(running) == number + 1, "nobody else has the turn"

        tasks = [asyncio.create_task(one(number)) for number in range(5)]
        await asyncio.sleep(0.01)
        assert running == [0]
        may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    *done, fourth, fifth = asyncio.run(ask())
    assert done == [None] * 3
    assert [type(refused) for refused in (fourth, fifth)] == [QueueFull, QueueFull]
    assert running == [0, 1, 2]


def test_a_failure_is_not_kept_and_old_answers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "CACHED_BYTES", 2500)
    monkeypatch.setattr(caches, "LARGEST_PART", 1)
    made: list[str] = []

    async def ask() -> None:
        kept = curves._SharedCache()

        async def make(name: str = "") -> bytes:
            made.append(name)
            if made.count(name) == 1 and name == "fails":
                raise ValueError(name)
            return b"12345"

        with pytest.raises(ValueError, match="fails"):
            await kept.get(("fails",), lambda: make("fails"))
        for name in ("fails", "a", "a", "b", "fails"):
            assert await kept.get((name,), lambda name=name: make(name)) == b"12345"  # type: ignore[misc]

    asyncio.run(ask())
    assert made == ["fails", "fails", "a", "b", "fails"], "the oldest of three was let go"


def test_a_parameter_of_the_query_that_is_refused_is_named(service: Running) -> None:
    problem = get(service, "mse/curve.json?points=many").json()
    assert problem["detail"].startswith("points: input should be a valid integer")
    assert problem["errors"] == [{"pointer": "/points", "detail": problem["detail"]}]
    missing = get(service, "mse/descent.json?features=[[1]]&target=[1]&rate=1&steps=1").json()
    assert missing["detail"] == "start is required"
