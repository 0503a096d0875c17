"""Triton's system shared memory, by the stock client: tensors in and out by region, and what a client may not do."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, shared_memory, triton_to_np_dtype

import lossd
from fronts.group import group
from lossd.api.inference.shared_memory import Region, SharedRegions, check_local
from lossd.configuration.keys import key_line
from lossd.configuration.settings import Settings
from lossd_client.errors import Forbidden, InvalidRequest
from lossd_client.wire import oip
from serving import Running, running
from waiting import eventually

Open = Callable[[int], tuple[str, Any]]

DATATYPES = {"float32": "FP32", "int64": "INT64", "float16": "FP16"}


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline", shared_memory=True, shared_memory_regions=4, shared_memory_bytes=64 << 20) as one:
        yield one


@pytest.fixture
def triton(service: Running) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(service.url.removeprefix("http://"), concurrency=4) as client:
        yield client
        client.unregister_system_shared_memory()


_numbers = itertools.count()


@pytest.fixture
def opened() -> Iterator[Open]:
    """Makes files of shared memory of so many bytes: their keys and handles."""
    handles: list[Any] = []

    def one(nbytes: int) -> tuple[str, Any]:
        key = f"/lossd-test-{os.getpid()}-{next(_numbers)}"
        handles.append(shared_memory.create_shared_memory_region(key, key, nbytes, create_only=True))
        return key, handles[-1]

    yield one
    for handle in handles:
        with suppress(FileNotFoundError):  # a test has unlinked it
            shared_memory.destroy_shared_memory_region(handle)


def focal(rows: int, classes: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "prediction": rng.standard_normal((rows, classes), dtype=np.float32),
        "target": rng.integers(0, classes, rows),
    }


def same(found: Any, expected: Any) -> None:
    """Compare numbers that a compiled pass may have computed with those of tensor operations."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def by_region(region: str, handle: Any, arrays: dict[str, np.ndarray]) -> list[InferInput]:
    """The inputs, written one after the other into a region."""
    inputs, at = [], 0
    for name, array in arrays.items():
        shared_memory.set_shared_memory_region(handle, [array], offset=at)
        infer_input = InferInput(name, list(array.shape), DATATYPES[array.dtype.name])
        inputs.append(infer_input.set_shared_memory(region, array.nbytes, offset=at))
        at += array.nbytes
    return inputs


def output(name: str, region: str, nbytes: int, offset: int = 0) -> InferRequestedOutput:
    requested = InferRequestedOutput(name)
    requested.set_shared_memory(region, nbytes, offset=offset)
    return requested


@pytest.mark.parametrize("rows", [64, 100_000], ids=["in a batch", "in a slab of its own"])
def test_inputs_and_outputs_go_by_region(triton: InferenceServerClient, opened: Open, rows: int) -> None:
    arrays = focal(rows)
    nbytes = sum(array.nbytes for array in arrays.values())
    (key_in, handle_in), (key_out, handle_out) = opened(nbytes), opened(arrays["prediction"].nbytes + 64)
    triton.register_system_shared_memory("in", key_in, nbytes)
    triton.register_system_shared_memory("out", key_out, arrays["prediction"].nbytes + 64)
    outputs = [output("loss", "out", 64), output("gradient", "out", arrays["prediction"].nbytes, offset=64)]
    answer = triton.infer(
        "focal", by_region("in", handle_in, arrays), outputs=[*outputs, InferRequestedOutput("accuracy")]
    )

    expected = lossd.evaluate("focal", inputs=arrays)
    gradient = answer.get_output("gradient")
    assert "data" not in gradient
    assert gradient["parameters"] == {
        "shared_memory_region": "out",
        "shared_memory_byte_size": arrays["prediction"].nbytes,
        "shared_memory_offset": 64,
    }
    read = lambda name, at: shared_memory.get_contents_as_numpy(  # noqa: E731
        handle_out, triton_to_np_dtype(answer.get_output(name)["datatype"]), answer.get_output(name)["shape"], offset=at
    )
    same(read("gradient", 64), expected.gradient)
    same(read("loss", 0), expected.loss)
    same(answer.as_numpy("accuracy"), expected.metrics.accuracy)


def test_tensors_by_region_and_in_the_body_go_together(triton: InferenceServerClient, opened: Open) -> None:
    arrays = focal(64)
    key, handle = opened(arrays["prediction"].nbytes)
    triton.register_system_shared_memory("scores", key, arrays["prediction"].nbytes)
    inputs = by_region("scores", handle, {"prediction": arrays["prediction"]})
    inputs.append(InferInput("target", [64], "INT64").set_data_from_numpy(arrays["target"]))
    answer = triton.infer("focal", inputs, outputs=[InferRequestedOutput("loss")])
    same(answer.as_numpy("loss"), lossd.evaluate("focal", inputs=arrays).loss)


def test_requests_by_region_and_in_the_body_may_alternate(triton: InferenceServerClient, opened: Open) -> None:
    """Their heads are the same, and known from the second on."""
    arrays = focal(64)
    nbytes = sum(array.nbytes for array in arrays.values())
    key, handle = opened(nbytes)
    triton.register_system_shared_memory("both", key, nbytes)
    here = [InferInput(n, list(a.shape), DATATYPES[a.dtype.name]).set_data_from_numpy(a) for n, a in arrays.items()]
    there = by_region("both", handle, arrays)
    expected = lossd.evaluate("focal", inputs=arrays).loss
    for inputs in (here, there, here, there):
        answer = triton.infer("focal", inputs, outputs=[InferRequestedOutput("loss")])
        same(answer.as_numpy("loss"), expected)


def test_a_large_body_s_gradient_may_go_by_region(triton: InferenceServerClient, opened: Open) -> None:
    arrays = focal(100_000)
    key, handle = opened(arrays["prediction"].nbytes)
    triton.register_system_shared_memory("out", key, arrays["prediction"].nbytes)
    inputs = [InferInput(n, list(a.shape), DATATYPES[a.dtype.name]).set_data_from_numpy(a) for n, a in arrays.items()]
    triton.infer("focal", inputs, outputs=[output("gradient", "out", arrays["prediction"].nbytes)])
    found = shared_memory.get_contents_as_numpy(handle, np.float32, [100_000, 10])
    same(found, lossd.evaluate("focal", inputs=arrays).gradient)


def test_the_gradient_may_replace_the_prediction(triton: InferenceServerClient, opened: Open) -> None:
    arrays = focal(64)
    key, handle = opened(4096)
    triton.register_system_shared_memory("both", key, 4096)
    inputs = by_region("both", handle, arrays)
    triton.infer("focal", inputs, outputs=[output("gradient", "both", arrays["prediction"].nbytes)])
    found = shared_memory.get_contents_as_numpy(handle, np.float32, [64, 10])
    same(found, lossd.evaluate("focal", inputs=arrays).gradient)


def test_regions_are_listed_and_unregistered_as_by_triton(triton: InferenceServerClient, opened: Open) -> None:
    assert "system_shared_memory" in triton.get_server_metadata()["extensions"]
    keys = [opened(8192)[0] for _ in range(2)]
    triton.register_system_shared_memory("one", keys[0], 4096, offset=4096)
    triton.register_system_shared_memory("two", keys[1], 100)
    one = {"name": "one", "key": keys[0], "offset": 4096, "byte_size": 4096}
    two = {"name": "two", "key": keys[1], "offset": 0, "byte_size": 100}
    assert triton.get_system_shared_memory_status() == [one, two]
    assert triton.get_system_shared_memory_status("two") == [two]
    triton.unregister_system_shared_memory("one")
    triton.unregister_system_shared_memory("one")  # of none there is nothing to say
    assert triton.get_system_shared_memory_status() == [two]
    triton.unregister_system_shared_memory()
    assert triton.get_system_shared_memory_status() == []
    assert triton.get_cuda_shared_memory_status() == []


def refused(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(InferenceServerException) as fault:
        call(*arguments, **keywords)
    return f"{fault.value.status()} {fault.value.message()}"


def test_a_name_is_taken_until_it_is_unregistered(triton: InferenceServerClient, opened: Open) -> None:
    key, _ = opened(64)
    triton.register_system_shared_memory("mine", key, 64)
    assert refused(triton.register_system_shared_memory, "mine", key, 32).startswith(
        "409 shared memory region 'mine' already in manager"
    )
    assert refused(triton.get_system_shared_memory_status, "other").startswith(
        "404 Unable to find system shared memory region: 'other'"
    )


@pytest.mark.parametrize(
    "key", ["/../../etc/passwd", "/etc/passwd", "..", "/", "//", "a/b", "/no-such-file", "\0", "x" * 300]
)
def test_a_key_names_a_file_of_shared_memory(triton: InferenceServerClient, key: str) -> None:
    assert refused(triton.register_system_shared_memory, "r", key, 8).startswith("400 ")
    assert triton.get_system_shared_memory_status() == []


def test_links_folders_and_pipes_are_no_memory(triton: InferenceServerClient, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 64)
    name = f"lossd-test-{os.getpid()}-odd"
    path = Path("/dev/shm", name)
    for make, remove in (
        (lambda: path.symlink_to(tmp_path / "secret"), path.unlink),
        (path.mkdir, path.rmdir),
        (lambda: os.mkfifo(path), path.unlink),
    ):
        make()
        try:
            assert refused(triton.register_system_shared_memory, "r", name, 8).startswith("400 ")
        finally:
            remove()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"key": "KEY", "offset": 0, "byte_size": 65}, "failed to register shared memory region 'r': invalid args"),
        ({"key": "KEY", "offset": 64, "byte_size": 1}, "invalid args"),
        ({"key": "KEY", "offset": 2**61, "byte_size": 2**61}, "setting shared_memory_bytes"),
        ({"key": "KEY", "offset": -8, "byte_size": 8}, "offset must be a whole number of bytes, from 0 on"),
        ({"key": "KEY", "byte_size": 0}, "byte_size must be a whole number of bytes, from 1 on"),
        ({"key": "KEY", "byte_size": 2**63}, "byte_size must be"),
        ({"key": "KEY", "byte_size": True}, "byte_size must be"),
        ({"key": "KEY", "byte_size": 8.0}, "byte_size must be"),
        ({"key": 7, "byte_size": 8}, "key must be the name of a file"),
        ({"key": "KEY"}, "a region is registered by"),
        ({"key": "KEY", "byte_size": 8, "more": 1}, "a region is registered by"),
        ([], "a region is registered by"),
    ],
)
def test_a_region_lies_inside_its_file(service: Running, opened: Open, document: Any, message: str) -> None:
    key, _ = opened(64)
    if isinstance(document, dict) and document.get("key") == "KEY":
        document = {**document, "key": key}
    with httpx.Client(base_url=service.url) as http:
        answer = http.post("/v2/systemsharedmemory/region/r/register", json=document)
        assert answer.status_code in (400, 413)
        assert message in answer.json()["error"]
        assert http.get("/v2/systemsharedmemory/status").json() == []


def test_regions_are_few(triton: InferenceServerClient, opened: Open) -> None:
    key, _ = opened(64)
    for number in range(4):
        triton.register_system_shared_memory(str(number), key, 8)
    assert "4 regions are registered (setting shared_memory_regions)" in refused(
        triton.register_system_shared_memory, "one too many", key, 8
    )


PLACES: list[tuple[dict[str, Any], str]] = [
    ({"shared_memory_region": "r"}, "shared_memory_byte_size of prediction must be a number of bytes"),
    ({"shared_memory_byte_size": 8}, "shared_memory_region of prediction must be the name of a registered region"),
    ({"shared_memory_offset": 8}, "shared_memory_region of prediction must be"),
    (
        {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": -8},
        "shared_memory_offset of",
    ),
    ({"shared_memory_region": "r", "shared_memory_byte_size": -8}, "shared_memory_byte_size of"),
    ({"shared_memory_region": "r", "shared_memory_byte_size": 2**70}, "shared_memory_byte_size of"),
    ({"shared_memory_region": "r", "shared_memory_byte_size": 12}, "has 8 bytes, shared_memory_byte_size is 12"),
    (
        {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 60},
        "Invalid offset + byte size for shared memory region: 'r'",
    ),
    (
        {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 2**61},
        "Invalid offset + byte size",
    ),
    (
        {"shared_memory_region": "other", "shared_memory_byte_size": 8},
        "Unable to find system shared memory region: 'other'",
    ),
    (
        {"shared_memory_region": "r", "shared_memory_byte_size": 8, "binary_data_size": 8},
        "is in shared memory, and has",
    ),
]


@pytest.mark.parametrize(("parameters", "message"), PLACES)
def test_an_input_lies_inside_its_region(
    service: Running, triton: InferenceServerClient, opened: Open, parameters: dict[str, Any], message: str
) -> None:
    key, _ = opened(64)
    triton.register_system_shared_memory("r", key, 64)
    document = {
        "inputs": [
            {"name": "prediction", "shape": [2], "datatype": "FP32", "parameters": parameters},
            {"name": "target", "shape": [2], "datatype": "FP32", "data": [0.0, 1.0]},
        ]
    }
    answer = httpx.post(f"{service.url}/v2/models/mse/infer", json=document)
    assert answer.status_code in (400, 404), answer.text
    assert message in answer.json()["error"]
    assert service.engine.in_progress == 0


def test_an_output_fits_its_place(triton: InferenceServerClient, opened: Open) -> None:
    key, handle = opened(8192)
    triton.register_system_shared_memory("r", key, 8192)
    inputs = by_region("r", handle, focal(64))
    ask = lambda *outputs: refused(triton.infer, "focal", inputs, outputs=list(outputs))  # noqa: E731
    assert "for output 'gradient' (2556 bytes) should be at least 2560 bytes" in ask(output("gradient", "r", 2556))
    assert "for output 'loss' (4 bytes) should be at least 8 bytes" in ask(output("loss", "r", 4))
    assert "Invalid offset + byte size" in ask(output("gradient", "r", 2560, offset=8192 - 2556))
    assert "the outputs 'gradient' and 'loss' overlap in shared memory" in ask(
        output("gradient", "r", 2560), output("loss", "r", 8, offset=2559 - 7)
    )


@pytest.mark.parametrize("rows", [64, 100_000])
def test_a_file_that_is_cut_meanwhile_makes_its_own_request_fail(
    service: Running, triton: InferenceServerClient, opened: Open, rows: int
) -> None:
    arrays = focal(rows)
    nbytes = sum(array.nbytes for array in arrays.values())
    key, handle = opened(nbytes)
    triton.register_system_shared_memory("r", key, nbytes)
    inputs = by_region("r", handle, arrays)
    os.truncate(f"/dev/shm{key}", 4096 if rows > 64 else 1024)
    assert "the file of shared memory region 'r' was cut" in refused(triton.infer, "focal", inputs)
    inline_inputs = [
        InferInput(n, list(a.shape), DATATYPES[a.dtype.name]).set_data_from_numpy(a) for n, a in arrays.items()
    ]
    outputs = [output("gradient", "r", arrays["prediction"].nbytes)]
    assert "was cut" in refused(triton.infer, "focal", inline_inputs, outputs=outputs)
    assert os.stat(f"/dev/shm{key}").st_size <= 4096, "nothing was written behind its end"
    os.truncate(f"/dev/shm{key}", nbytes)
    assert service.engine.in_progress == 0
    assert triton.is_server_ready()


def test_files_that_shrink_and_grow_all_the_time_kill_nobody(
    service: Running, triton: InferenceServerClient, opened: Open
) -> None:
    arrays = focal(60_000)
    nbytes = sum(array.nbytes for array in arrays.values())
    key, handle = opened(nbytes)
    triton.register_system_shared_memory("r", key, nbytes)
    inputs = by_region("r", handle, arrays)
    done = threading.Event()

    def trouble() -> None:
        while not done.is_set():
            os.truncate(f"/dev/shm{key}", 0)
            os.truncate(f"/dev/shm{key}", nbytes)

    thread = threading.Thread(target=trouble)
    thread.start()
    answers = 0
    try:
        for _ in range(30):
            with suppress(InferenceServerException):
                outputs = [output("gradient", "r", arrays["prediction"].nbytes)]
                triton.infer("focal", inputs, outputs=outputs)
                answers += 1
    finally:
        done.set()
        thread.join()
    assert triton.is_server_ready()
    service.wait_until(lambda engine: engine.in_progress == 0)


def test_an_unlinked_file_is_used_until_it_is_unregistered(triton: InferenceServerClient, opened: Open) -> None:
    arrays = focal(64)
    key, handle = opened(4096)
    triton.register_system_shared_memory("r", key, 4096)
    inputs = by_region("r", handle, arrays)
    os.unlink(f"/dev/shm{key}")
    answer = triton.infer("focal", inputs, outputs=[InferRequestedOutput("loss")])
    same(answer.as_numpy("loss"), lossd.evaluate("focal", inputs=arrays).loss)
    triton.unregister_system_shared_memory("r")
    assert "Unable to find" in refused(triton.infer, "focal", inputs)


def test_no_file_stays_open(service: Running, triton: InferenceServerClient, opened: Open) -> None:
    def held() -> list[str]:
        found = []
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(os.readlink(entry))
        return [name for name in found if name == f"/dev/shm{key}"]

    key, _ = opened(64)
    mapped = len(held())  # the client's own
    triton.register_system_shared_memory("r", key, 64)
    assert len(held()) == mapped + 1
    refused(triton.register_system_shared_memory, "s", key, 65)
    assert len(held()) == mapped + 1
    triton.unregister_system_shared_memory("r")
    assert len(held()) == mapped


# Who may use it


def test_keys_have_regions_of_their_own(tmp_path: Path, opened: Open) -> None:
    secrets = {name: f"{name}-with-a-long-enough-key" for name in ("ann", "bob")}
    (tmp_path / "keys").write_text("\n".join(key_line(name, key) for name, key in secrets.items()))
    key, _ = opened(64)
    with running(engine="inline", shared_memory=True, api_keys_file=tmp_path / "keys") as one:
        ann, bob = (httpx.Client(base_url=one.url, headers={"X-API-Key": secret}) for secret in secrets.values())
        with ann, bob:
            path = "/v2/systemsharedmemory/region/r"
            assert ann.post(f"{path}/register", json={"key": key, "byte_size": 64}).status_code == 200
            assert bob.get("/v2/systemsharedmemory/status").json() == []
            assert bob.get(f"{path}/status").status_code == 404
            bob.post("/v2/systemsharedmemory/unregister")
            assert len(ann.get(f"{path}/status").json()) == 1
            assert bob.post(f"{path}/register", json={"key": key, "byte_size": 8}).status_code == 200


@pytest.mark.parametrize("client", [("10.0.0.7", 1), ("::ffff:10.0.0.7", 1), ("2001:db8::1", 1), ("testclient", 1)])
def test_clients_elsewhere_may_not(client: Any) -> None:
    with pytest.raises(Forbidden, match="on the service's machine"):
        check_local({"client": client, "headers": []})


@pytest.mark.parametrize("client", [None, ("127.0.0.1", 1), ("127.8.8.8", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
def test_clients_here_may(client: Any) -> None:
    check_local({"client": client, "headers": [(b"host", b"localhost")]})


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_a_proxy_here_speaks_for_clients_elsewhere(service: Running, header: str) -> None:
    answer = httpx.get(f"{service.url}/v2/systemsharedmemory/status", headers={header: "10.0.0.7"})
    assert answer.status_code == 403


def test_fronts_share_the_regions(tmp_path: Path, opened: Open) -> None:
    arrays = focal(64)
    key, handle = opened(8192)
    path = "/v2/systemsharedmemory"
    with group(tmp_path, 2, "--shared-memory", "true") as service, ExitStack() as stack:
        clients = service.client_of_each()
        first, second = clients.values()
        stack.callback(first.close)
        stack.callback(second.close)
        registered = first.post(f"{path}/region/r/register", json={"key": key, "byte_size": 8192})
        assert registered.status_code == 200
        inputs = [tensor._get_tensor() for tensor in by_region("r", handle, arrays)]
        losses = []
        for client in (second, first):
            answer = client.post("/v2/models/focal/infer", json={"inputs": inputs, "outputs": [{"name": "loss"}]})
            assert answer.status_code == 200, answer.text
            losses += answer.json()["outputs"][0]["data"]
        same(losses, [lossd.evaluate("focal", inputs=arrays).loss] * 2)
        killed = next(iter(clients))
        os.kill(killed, signal.SIGKILL)  # the one that registered it
        assert len(second.get(f"{path}/status").json()) == 1
        second.post(f"{path}/unregister")
        eventually(lambda: killed not in service.fronts and len(service.fronts) == 2)
        for client in service.client_of_each().values():
            stack.callback(client.close)
            assert client.get(f"{path}/status").json() == []


def test_another_file_of_the_same_key_is_not_taken_for_it(opened: Open) -> None:
    settings = Settings(shared_memory=True)
    table = os.memfd_create("regions")
    here, there = SharedRegions(settings, table), SharedRegions(settings, os.dup(table))
    key, _ = opened(64)
    here.register("", "r", {"key": key, "byte_size": 64})
    os.rename(f"/dev/shm{key}", f"/dev/shm{key}-old")
    try:
        Path(f"/dev/shm{key}").write_bytes(b"x" * 64)
        with pytest.raises(InvalidRequest, match="was replaced; register it again"):
            there.find("", "r")
        assert isinstance(here.find("", "r"), Region)
    finally:
        os.rename(f"/dev/shm{key}-old", f"/dev/shm{key}")
        os.close(table)


def test_a_request_by_region_is_read_as_its_parameters_say() -> None:
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 16}
    entry = {"name": "prediction", "shape": [2], "datatype": "FP32", "parameters": parameters}
    request = oip.read_request(httpx.Request("POST", "http://x", json={"inputs": [entry]}).content)
    assert request.inputs[0].place == oip.Place("r", 16, 8)
    assert not request.inputs[0].binary
