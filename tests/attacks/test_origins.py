"""A service without keys refuses what browsers send for pages of other sites, and nothing else."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from pydantic import ValidationError

from browser import FLAGS, browser_path
from lossd.configuration.keys import fresh_key
from lossd.configuration.settings import Settings
from serving import Running, running

KEY = fresh_key()
EVIL, FRIEND = "http://attacker.example", "https://dash.example"
CURVE = "/v1/losses/mse/curve.svg"
MSE = '{"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}'
OIP = """{"inputs": [{"name": "prediction", "shape": [1], "datatype": "FP32", "data": [1]},
                     {"name": "target", "shape": [1], "datatype": "FP32", "data": [3]}]}"""
INFER = "/v2/models/mse/infer"
JSON = {"Content-Type": "application/json"}
DOORS = [
    ("GET", CURVE, None),
    ("GET", "/metrics", None),
    ("GET", "/v2", None),
    ("POST", "/v1/evaluate", MSE),
    ("POST", INFER, OIP),
]


@pytest.fixture(scope="module")
def http_() -> Iterator[httpx.Client]:
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        yield http


def ask(http: httpx.Client, door: tuple[str, str, str | None], headers: dict[str, str]) -> httpx.Response:
    method, path, body = door
    return http.request(method, path, content=body, headers=(JSON if body else {}) | headers)


@pytest.mark.parametrize(
    "name", ["attacker.example", "attacker.example:8000", "localhost.attacker.example", "127.0.0.1.attacker.example",
             "0.0.0.0:8000", "192.0.2.1", "loc alhost.a", "[::", "a.b@localhost"],
)  # fmt: skip
def test_a_name_that_points_here_without_being_ours_is_refused(http_: httpx.Client, name: str) -> None:
    answers = {door: ask(http_, door, {"Host": name}) for door in DOORS}
    assert {door: answer.status_code for door, answer in answers.items()} == dict.fromkeys(DOORS, 403)
    for (_, path, _), answer in answers.items():
        assert "LOSSD_ALLOWED_HOSTS" in answer.json()["error" if path.startswith("/v2") else "detail"]


@pytest.mark.parametrize(
    "name", ["localhost:8000", "LOCALHOST", "127.0.0.1", "127.1.2.3:1", "[::1]:8000", "lossd",
             "a.localhost", "localhost.:1"],
)  # fmt: skip
def test_the_machine_s_own_names_are_the_service_s(http_: httpx.Client, name: str) -> None:
    assert [ask(http_, door, {"Host": name}).status_code for door in DOORS] == [200] * len(DOORS)


FOREIGN = {
    "an image": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    "a frame": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "a link": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    "a form": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": EVIL},
    "a script": {"Origin": EVIL},
    "a file": {"Origin": "null"},
    "another port": {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
    "nothing": {"Origin": ""},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_what_another_page_sends_is_refused(http_: httpx.Client, headers: dict[str, str]) -> None:
    assert {door: ask(http_, door, headers).status_code for door in DOORS} == dict.fromkeys(DOORS, 403)


def test_the_service_s_own_pages_ask_whatever_they_like(http_: httpx.Client) -> None:
    origin = str(http_.base_url).rstrip("/")
    for headers in (
        {"Origin": origin, "Sec-Fetch-Site": "same-origin"},
        {"Origin": origin},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Origin": "https://behind.a.proxy", "Sec-Fetch-Site": "same-origin"},
    ):
        assert [ask(http_, door, headers).status_code for door in DOORS] == [200] * len(DOORS)


@pytest.mark.parametrize("path", ["/", "/docs", "/problems/forbidden"])
def test_a_link_on_another_site_opens_the_service_s_pages_in_a_tab_and_in_no_frame(
    http_: httpx.Client, path: str
) -> None:
    assert http_.get(path, headers=FOREIGN["a link"]).status_code == 200
    assert http_.get(path, headers=FOREIGN["a frame"]).status_code == 403


@pytest.mark.parametrize(
    "form", ["text/plain", "TEXT/PLAIN; charset=utf-8", "multipart/form-data; boundary=a",
             "application/x-www-form-urlencoded"],
)  # fmt: skip
def test_a_form_s_body_is_no_inference(http_: httpx.Client, form: str) -> None:
    for path in (INFER, f"{INFER}/", INFER.replace("/infer", "/versions/1/infer")):
        answer = http_.post(path, content=OIP, headers={"Content-Type": form})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]
    assert http_.post("/v1/evaluate", content=MSE, headers={"Content-Type": form}).status_code == 415


def test_what_computes_nothing_may_come_as_libcurl_sends_it(http_: httpx.Client) -> None:
    """Triton's client in C++ names no type but for inferences; libcurl then names that of forms."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert http_.post("/v2/repository/index", headers=form).is_success
    assert http_.post("/v2/systemsharedmemory/unregister", headers=form).is_success
    assert http_.post("/v2/repository/models/mse/load", headers=form).status_code == 501


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "application/vnd.sagemaker"])
def test_clients_of_the_protocol_need_name_no_type(http_: httpx.Client, kind: str | None) -> None:
    answer = http_.post(INFER, content=OIP, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 200


def test_whom_the_settings_name_may_ask() -> None:
    with (
        running(engine="inline", allowed_hosts="loss.example,10.0.0.7", cors_origins=FRIEND) as service,
        httpx.Client(base_url=service.url, timeout=60) as http,
    ):
        for name in ("loss.example", "LOSS.example:443", "10.0.0.7:8000", "localhost"):
            assert http.get("/v1/losses/mse", headers={"Host": name}).is_success, name
        for name in ("10.0.0.8", "a.loss.example"):
            assert http.get("/v1/losses/mse", headers={"Host": name}).status_code == 403, name
        headers = {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"}
        assert http.post("/v1/evaluate", content=MSE, headers=JSON | headers).is_success
        assert http.post("/v1/evaluate", content=MSE, headers=JSON | FOREIGN["a script"]).status_code == 403
    with running(engine="inline", allowed_hosts="*", cors_origins="*") as service:
        headers = {"Host": "attacker.example"} | FOREIGN["an image"]
        assert httpx.get(f"{service.url}/metrics", headers=headers).is_success


def test_beyond_this_machine_any_name_will_do_until_some_are_named() -> None:
    with running(engine="inline", host="0.0.0.0") as service:
        for name in ("loss.example", "10.1.2.3:8000"):
            assert httpx.get(f"{service.url}/v1/losses/mse", headers={"Host": name}).is_success
        for headers in FOREIGN.values():
            assert httpx.get(f"{service.url}{CURVE}", headers=headers).status_code == 403
    with running(engine="inline", host="0.0.0.0", allowed_hosts="loss.example") as service:
        for name, status in {
            "loss.example": 200,
            "10.1.2.3": 200,
            "lossd": 200,
            "0.0.0.0": 403,
            "b.example": 403,
        }.items():
            assert httpx.get(f"{service.url}/v1/losses/mse", headers={"Host": name}).status_code == status, name


def test_with_keys_pages_of_others_have_none_and_are_not_looked_at() -> None:
    with running(engine="inline", api_key=KEY) as service:
        headers = {"X-API-Key": KEY, "Host": "loss.example"} | FOREIGN["a script"]
        assert httpx.get(f"{service.url}/v1/losses/mse", headers=headers).is_success
    with running(engine="inline", api_key=KEY, allowed_hosts="loss.example") as service:
        for name, status in {"loss.example": 200, "b.example": 403}.items():
            headers = {"X-API-Key": KEY, "Host": name}
            assert httpx.get(f"{service.url}/v1/losses/mse", headers=headers).status_code == status


@pytest.mark.parametrize("hosts", ["http://a", "a/b", "a:80", "a, b", ""])
def test_what_is_no_host_is_refused(hosts: str) -> None:
    with pytest.raises(ValidationError, match="is not a host name"):
        Settings(allowed_hosts=hosts)


# A browser


ATTACK = """<!doctype html><title>attack</title>
<img src="{url}/v1/losses/mse/curve.svg?points=50"><iframe src="{url}/v1/losses"></iframe><iframe name="other"></iframe>
<form id="form" method="post" enctype="text/plain" target="other" action="{url}/v2/models/mse/infer">
<input name='{{"inputs": [], "x": "' value='"}}'></form>
<script>
document.getElementById("form").submit();
fetch("{url}/v2/models/mse/infer", {{method: "POST", mode: "no-cors", body: "{{}}"}});
fetch("{url}/metrics", {{mode: "no-cors"}});
</script>"""


@contextmanager
def hosting(page: str) -> Iterator[int]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_real_browser_s_page_from_elsewhere_gets_nothing(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    path = browser_path()
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    rules = "--host-resolver-rules=MAP attacker.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with hosting(ATTACK.format(url=service.url)) as port, playwright.sync_playwright() as drive:
        browser = drive.chromium.launch(executable_path=path, args=[*FLAGS, rules])
        page = browser.new_page()
        page.goto(f"http://attacker.example:{port}/", wait_until="networkidle")
        rebound = page.goto(f"http://attacker.example:{service.port}/v1/metrics")
        direct = page.goto(f"{service.url}/v1/metrics/f1")
        browser.close()
    assert (rebound.status, direct.status) == (403, 200)
    statuses: dict[str, set[int]] = {}
    for record in caplog.records:
        if isinstance(record.msg, dict):
            statuses.setdefault(record.msg["path"], set()).add(record.msg["status"])
    statuses.pop("/favicon.ico", None)
    assert statuses == {path: {403} for path in (CURVE, "/v1/losses", INFER, "/metrics", "/v1/metrics")}
