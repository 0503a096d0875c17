"""Headers for browsers: CORS, and the policy of what a page may load."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator

import httpx
import pytest
from pydantic import ValidationError

from lossd.configuration.keys import fresh_key
from lossd.configuration.settings import Settings
from serving import Running, running

KEY = fresh_key()
FRIEND, STRANGER = "https://dash.example", "https://evil.example"
MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}
DOORS = ("/v1/evaluate", "/v2/models/mse/infer", "/v1/losses", "/health/ready")


@pytest.fixture(scope="module")
def shared() -> Iterator[httpx.Client]:
    with (
        running(engine="inline", api_key=KEY, cors_origins=f"{FRIEND},http://localhost:3000") as service,
        httpx.Client(base_url=service.url) as http,
    ):
        yield http


def preflight(http: httpx.Client, path: str, origin: str) -> httpx.Response:
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key,content-type"}
    return http.options(path, headers={"Origin": origin, **headers})


@pytest.mark.parametrize("path", DOORS)
def test_a_friend_s_preflight_is_answered_without_a_key(shared: httpx.Client, path: str) -> None:
    answer = preflight(shared, path, FRIEND)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert "x-api-key" in answer.headers["access-control-allow-headers"].lower()
    assert "POST" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_friend_s_page_may_write_runs(shared: httpx.Client, method: str) -> None:
    headers = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "if-none-match,x-api-key"}
    answer = shared.options("/v1/runs/a", headers={"Origin": FRIEND, **headers})
    assert answer.status_code == 200
    assert method in answer.headers["access-control-allow-methods"]
    assert shared.options("/v1/runs/a", headers={"Origin": STRANGER, **headers}).status_code == 400
    answer = shared.get("/v1/losses", headers={"X-API-Key": KEY, "Origin": FRIEND})
    assert "ETag" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("path", DOORS)
def test_a_stranger_s_is_not(shared: httpx.Client, path: str) -> None:
    answer = preflight(shared, path, STRANGER)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", DOORS[:2])
def test_a_friend_s_page_may_read_answers_and_refusals(shared: httpx.Client, path: str) -> None:
    for headers, status in (({"X-API-Key": KEY}, (200, 400)), ({}, (401,))):
        answer = shared.post(path, json=MSE, headers={**headers, "Origin": FRIEND})
        assert answer.status_code in status
        assert answer.headers["access-control-allow-origin"] == FRIEND
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
    answer = shared.post(path, json=MSE, headers={"X-API-Key": KEY, "Origin": STRANGER})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", DOORS)
def test_by_default_no_page_from_elsewhere_may(service: Running, path: str) -> None:
    with httpx.Client(base_url=service.url) as http:
        assert preflight(http, path, FRIEND).status_code == 403
        answer = http.post(path, json=MSE, headers={"Origin": FRIEND})
        assert answer.status_code == 403
        assert [name for name in answer.headers if name.startswith("access-control")] == []


@pytest.mark.parametrize("origins", ["dash.example", "https://dash.example/", "https://*.example", "a,b", "ftp://a"])
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        Settings(cors_origins=origins)


# Pages


def directives(answer: httpx.Response) -> dict[str, list[str]]:
    parts = (part.split() for part in answer.headers["content-security-policy"].split(";"))
    return {name: values for name, *values in parts}


PAGES = (
    "/",
    "/docs",
    "/redoc",
    "/problems",
    "/problems/too-large",
    "/manual",
    "/manual/losses",
    "/v1/losses",
    "/nowhere",
)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_stays_out_of_frames_and_loads_nothing_from_elsewhere(service: Running, path: str) -> None:
    answer = httpx.get(f"{service.url}{path}")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-request-id"]
    policy = directives(answer)
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"]
    allowed = {source for sources in policy.values() for source in sources}
    assert {s for s in allowed if s.startswith(("http", "*")) or s == "'unsafe-eval'"} == set()
    assert "'unsafe-inline'" not in policy.get("script-src", [])


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_s_own_scripts_may_run_and_no_other(service: Running, path: str) -> None:
    answer = httpx.get(f"{service.url}{path}")
    inline = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in inline}
    assert set(directives(answer)["script-src"]) == {"'self'", *hashes}
    assert len(inline) == 2
    assert not re.search(r"\son\w+=", answer.text), "a handler in an attribute would not run"
    for source in re.findall(r'(?:src|href)="([^"#]+)"', answer.text):
        assert ":" not in source, source
        assert not source.startswith("/"), source
        assert httpx.get(f"{service.url}/{source}").is_success
