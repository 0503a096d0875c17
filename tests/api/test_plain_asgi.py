"""The application under a server that knows ASGI alone. It pickles messages, as the proxy of Ray Serve does."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi.routing import APIRoute
from safetensors.numpy import load

from chaos.bodies import safetensors_body
from lossd.api import create_app
from lossd.api.app import ServiceApp
from lossd.api.explorer import STATIC
from lossd.configuration.settings import Settings
from lossd_client.wire import safetensors

PIECE_BYTES = 64 << 10
ROWS = 60_000  # 1.4 MB in one request: its body is streamed
SCALARS = (bool, int, float, str, bytes, type(None))


def assert_plain(value: Any) -> None:
    """Check that a message consists of the types that ASGI allows, and of no subclass or view of them."""
    if type(value) in (list, tuple):
        for entry in value:
            assert_plain(entry)
    elif type(value) is dict:
        for key, entry in value.items():
            assert type(key) is str
            assert_plain(entry)
    else:
        assert type(value) in SCALARS, value


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class StrictServer:
    """Calls an application as the specification of ASGI says, with the keys of a scope that must be there.

    Args:
        app: The application.
        root_path: The proxy's path before each path.
    """

    def __init__(self, app: ServiceApp, root_path: str = "") -> None:
        self.app = app
        self.root_path = root_path
        self.visited: set[str] = set()

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """Run the application's lifespan around a block."""
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        running = asyncio.create_task(self.app(scope, events.get, replies.put))  # type: ignore[arg-type]
        await events.put({"type": "lifespan.startup"})
        started = await replies.get()
        assert started == {"type": "lifespan.startup.complete"}, started["message"]
        yield
        await events.put({"type": "lifespan.shutdown"})
        assert (await replies.get()) == {"type": "lifespan.shutdown.complete"}
        await running

    async def __call__(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, **headers: str
    ) -> Answer:
        """Send a request, and return its answer."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"content_type": "application/json", **headers}
        body = body or b""
        path, _, query = path.partition("?")
        fields = {"host": "127.0.0.1", "content-length": str(len(body)), **headers}
        self.visited.add(path)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "path": self.root_path + path, "query_string": query.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()],
        }  # fmt: skip
        pieces = [body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)] or [b""]
        forever, answer, more = asyncio.Event(), Answer(), True

        async def receive() -> dict[str, Any]:
            if pieces:
                piece = pieces.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            await forever.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal more
            assert type(message) is dict
            message = pickle.loads(pickle.dumps(message))
            assert_plain(message)
            assert more, "a message follows the end of the answer"
            if message["type"] == "http.response.start":
                assert not answer.status
                answer.status = message["status"]
                for name, value in message.get("headers", ()):
                    assert type(name) is type(value) is bytes
                    assert name == name.lower()
                    answer.headers[name.decode()] = value.decode("latin-1")
            else:
                assert message["type"] == "http.response.body"
                assert answer.status
                assert type(message.get("body", b"")) is bytes
                answer.body += message.get("body", b"")
                more = message.get("more_body", False)

        await self.app(scope, receive, send)
        assert not more
        if "content-length" in answer.headers and method != "HEAD" and answer.status != 304:
            assert int(answer.headers["content-length"]) == len(answer.body)
        return answer


def with_app(scenario: Callable[[StrictServer], Coroutine[Any, Any, None]], folder: Path, **settings: Any) -> None:
    """Run a scenario against an application in this process."""

    async def run() -> None:
        chosen = Settings(engine="inline", compiled=False, threads=1, runs=str(folder / "runs.db"), **settings)
        app = create_app(chosen, wait_ready=True)
        server = StrictServer(app, settings.get("root_path", ""))
        async with server.started():
            await scenario(server)

    asyncio.run(run())


def numbers(seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    prediction, target = np.random.default_rng(seed).standard_normal((2, ROWS, 3)).astype(np.float32)
    return prediction, target


def gradient(prediction: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The gradient of mse."""
    return 2 * (prediction.astype(np.float64) - target) / prediction.size


def as_safetensors(seed: int) -> bytes:
    prediction, target = numbers(seed)
    return safetensors_body({"loss": {"name": "mse"}}, prediction=prediction, target=target)


def gradient_in(body: bytes) -> np.ndarray[Any, Any]:
    return load(body)["gradient.prediction"]


def test_every_route_answers_in_bytes(tmp_path: Path) -> None:
    """Each path of the OpenAPI document and of the pages, with each of its methods."""

    async def scenario(ask: StrictServer) -> None:
        prediction, target = numbers(0)
        mse = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [3.0, 1.0]}}
        assert (await ask("POST", "/v1/evaluate", mse)).json["loss"] == 2.5
        answer = await ask("POST", "/v1/evaluate", as_safetensors(0), content_type=safetensors.MEDIA_TYPE)
        assert answer.status == 200
        np.testing.assert_allclose(gradient_in(answer.body), gradient(prediction, target), rtol=1e-6)
        packed = await ask(
            "POST", "/v1/evaluate", {**mse, "inputs": {"prediction": [1.0] * 5000, "target": [2.0] * 5000}},
            accept_encoding="gzip",
        )  # fmt: skip
        assert packed.headers["content-encoding"] == "gzip"
        assert (await ask("POST", "/v1/evaluate", b"{", content_type="application/json")).status == 400
        assert (await ask("DELETE", "/v1/evaluate")).status == 405

        arrays = {"prediction": prediction, "target": target}
        head, *tensors = infer_request(arrays)
        body = b"".join([head, *tensors])
        answer = await ask("POST", "/v2/models/mse/infer", body, inference_header_content_length=str(len(head)))
        assert answer.status == 200, answer.body[:300]
        at, last = int(answer.headers["inference-header-content-length"]), 0
        for output in json.loads(answer.body[:at])["outputs"]:
            first, last = last, last + output["parameters"]["binary_data_size"]
            if output["name"] == "gradient":
                found = np.frombuffer(answer.body[at + first : at + last], np.float32).reshape(-1, 3)
        np.testing.assert_allclose(found, gradient(prediction, target), rtol=1e-6)
        for path in ("", "/health/live", "/health/ready", "/models/stats", "/models/mse", "/models/mse/config",
                     "/models/mse/ready", "/models/mse/stats"):  # fmt: skip
            assert (await ask("GET", f"/v2{path}")).status == 200, path
        assert (await ask("POST", "/v2/repository/index", {})).status == 200
        assert (await ask("GET", "/v2/nowhere")).status == 404

        regions, region = "/v2/systemsharedmemory", "/v2/systemsharedmemory/region/strict"
        with closing(SharedMemory(create=True, size=64)) as memory:
            assert (await ask("POST", f"{region}/register", {"key": memory.name, "byte_size": 64})).status == 200
            for path in (regions, region):
                assert [found["name"] for found in (await ask("GET", f"{path}/status")).json] == ["strict"]
            for path in (region, regions):
                assert (await ask("POST", f"{path}/unregister", {})).status == 200
            memory.unlink()

        run = "/v1/runs/strict"
        definition = {"task": "binary", "metrics": ["roc_curve", "auroc"], "identity": "position"}
        inputs = {"prediction": [0.5, -1.0, 2.0, 0.1], "target": [1, 0, 1, 0]}
        assert (await ask("PUT", run, definition)).status == 201
        assert (await ask("PUT", f"{run}/batches/a", {"first": 0, "inputs": inputs})).status == 201
        assert (await ask("PUT", f"{run}/batches/a", {"first": 0, "inputs": inputs})).status == 200
        for path in ("/v1/runs", run, f"{run}/batches", f"{run}/batches/a", f"{run}/plot.svg?kind=roc"):
            assert (await ask("GET", path)).status == 200, path
        assert (await ask("POST", f"{run}/seal")).status == 200
        assert (await ask("PUT", "/v1/runs/other", definition)).status == 201
        assert (await ask("PUT", "/v1/runs/other/batches/a", {"first": 0, "inputs": inputs})).status == 201
        assert (await ask("POST", "/v1/runs/other/seal")).status == 200
        assert (await ask("GET", "/v1/compare?run=strict&run=other")).status == 200
        assert (await ask("DELETE", "/v1/runs/other")).status == 204

        for path in ("/v1/losses", "/v1/losses/focal", "/v1/metrics", "/v1/metrics/f1", "/health/live",
                     "/health/ready", "/metrics", "/openapi.json", "/docs", "/redoc",
                     "/docs/static/redoc.standalone.js", "/problems", "/problems/not-found",
                     "/", "/manual", "/manual/search.json", "/manual/losses"):  # fmt: skip
            for accepted in ("identity", "gzip"):
                answer = await ask("GET", path, accept_encoding=accepted)
                assert answer.status == 200, (path, answer.body[:300])
                if tag := answer.headers.get("etag"):
                    assert (await ask("GET", path, accept_encoding=accepted, if_none_match=tag)).status == 304
            assert (await ask("HEAD", path)).status == 200
        for form in ("json", "svg"):
            assert (await ask("GET", f"/v1/losses/mse/curve.{form}", accept_encoding="gzip")).status == 200
        linear = "features=[[1,2]]&target=[1]&start=[0,0]&rate=0.1&steps=2"
        assert (await ask("GET", f"/v1/losses/mse/descent.json?{linear}")).status == 200
        page = (await ask("GET", "/")).body.decode()
        (version,) = set(re.findall(r"explorer/(\w+)/", page))
        for file in (path.relative_to(STATIC) for path in STATIC.rglob("*") if path.is_file()):
            answer = await ask("GET", f"/explorer/{version}/{file}")
            assert answer.status == 200, file
            assert answer.body
        assert (await ask("GET", "/docs/static/favicon.png")).status == 200
        assert (await ask("GET", "/nowhere")).status == 404

        routes = {route.path for route in ask.app.routes if isinstance(route, APIRoute)}
        patterns = {
            template: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)))
            for template in routes | set(ask.app.openapi()["paths"])
        }
        assert {name for name, pattern in patterns.items() if not any(map(pattern.fullmatch, ask.visited))} == set()

    with_app(scenario, tmp_path, shared_memory=True)


def infer_request(arrays: dict[str, np.ndarray[Any, Any]]) -> list[bytes]:
    """A request of the Open Inference Protocol with binary tensors both ways: its JSON, then the tensors."""
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    document = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    return [json.dumps(document).encode(), *(array.tobytes() for array in arrays.values())]


def test_a_path_before_all_paths_needs_no_raw_path(tmp_path: Path) -> None:
    async def scenario(ask: StrictServer) -> None:
        assert (await ask("GET", "/health/ready")).status == 200
        problem = await ask("GET", "/v1/losses/nothing")
        assert problem.json["type"] == "/loss/problems/unknown-loss"

    with_app(scenario, tmp_path, root_path="/loss")


def test_an_answer_that_a_server_keeps_does_not_change(tmp_path: Path) -> None:
    """httpx's transport keeps the pieces until the client reads them. By then, another request may have the slab."""

    async def scenario(ask: StrictServer) -> None:
        transport = httpx.ASGITransport(ask.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
            headers = {"content-type": safetensors.MEDIA_TYPE}
            answers = []
            for seed in range(4):
                request = http.build_request("POST", "/v1/evaluate", content=as_safetensors(seed), headers=headers)
                answers.append(await http.send(request, stream=True))
            for seed, answer in enumerate(answers):
                np.testing.assert_allclose(gradient_in(await answer.aread()), gradient(*numbers(seed)), rtol=1e-6)

    with_app(scenario, tmp_path)
