"""The programs in other languages, run as a reader would run them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import torch
from safetensors import numpy as reference

from client.fake import FakeService, evaluation, problem
from excerpts import ROOT, excerpt
from lossd.engine import worker_process
from lossd_client import LossClient
from serving import Running, running

EXAMPLES = ROOT / "client" / "examples"
PREDICTION = np.array([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], np.float32)
TARGET = np.array([0, 1])

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


def run(*command: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    # A program of a second needs no optimising compiler; without it, Java starts in half the time.
    options = {"JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC", "LOSSD_API_KEY": "secret"}
    environment = os.environ | options
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=100, cwd=folder, env=environment
    )


def python(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of Python in a process that is forked from one that has imported most of it."""
    line = [sys.executable, *map(str, command)]
    done: subprocess.CompletedProcess[str] = worker_process.subprocess.run(
        line, capture_output=True, text=True, timeout=100
    )
    return done


@cache
def focal() -> tuple[float, torch.Tensor]:
    """The examples' loss and gradient, from the definition."""
    prediction = torch.tensor(PREDICTION, dtype=torch.float64, requires_grad=True)
    logs = torch.log_softmax(prediction, 1)[[0, 1], TARGET]
    loss = (-((1 - logs.exp()) ** 2) * logs).mean()
    loss.backward()
    assert prediction.grad is not None
    return loss.item(), prediction.grad


def remote_loss(service: Running) -> float:
    """What the Python client is answered."""
    with LossClient(service.url) as lossd:
        loss: float = lossd.evaluate("focal", PREDICTION, TARGET, gamma=2.0).loss
    assert loss == pytest.approx(focal()[0], rel=1e-6)
    return loss


# Programs that evaluate once and judge the answer

PROGRAMS = {
    "java/Evaluate.java": ("", "java -cp /usr/share/java/gson.jar client/examples/java/Evaluate.java"),
    "cpp/evaluate.cpp": ("g++ -std=c++17 client/examples/cpp/evaluate.cpp -o evaluate -lcurl", "./evaluate"),
    "go/evaluate.go": ("", "go run client/examples/go/evaluate.go"),
    "rust/evaluate.rs": ("", "cargo run --manifest-path client/examples/rust/Cargo.toml --"),
}
"""The commands to build and to run each, as its head names them."""
BUILT = {
    "java/Evaluate.java": (
        "javac -J-XX:TieredStopAtLevel=1 -J-XX:+UseSerialGC -cp /usr/share/java/gson.jar -d . "
        "client/examples/java/Evaluate.java",
        "java -cp /usr/share/java/gson.jar:. Evaluate",
    ),
    "go/evaluate.go": ("go build -o evaluate client/examples/go/evaluate.go", "./evaluate"),
}
"""The commands to build and to run those that are otherwise compiled each time."""
WARNINGS_ARE_ERRORS = "-Wall -Wextra -Wpedantic -Werror"
GSON, CRATES = Path("/usr/share/java/gson.jar"), Path("/usr/share/cargo/registry")

OFFLINE = f"""
build.rustflags = ["-D", "warnings", "-C", "prefer-dynamic"]
net.offline = true
profile.dev.debug = false
profile.dev.incremental = false
profile.dev.codegen-units = 1
profile.dev.debug-assertions = false
profile.dev.overflow-checks = false
profile.dev.build-override.codegen-units = 1
source.crates-io.replace-with = "debian"
source.debian.directory = "{CRATES}"
"""
"""Cargo's configuration: crates of Debian's packages, warnings are errors, and what is quickest to compile once."""

Run = Callable[[str], subprocess.CompletedProcess[str]]


class Program(NamedTuple):
    """A program that is run with the service's address: as its head says, and as it is run once it is compiled."""

    run: Run
    compiled: Callable[[], Run]


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Program:
    build, start = PROGRAMS[request.param]
    head = (EXAMPLES / request.param).read_text()
    assert build in head
    assert f"{start} [http://127.0.0.1:8000]" in head
    tool = (build or start).split()[0]
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    folder = tmp_path_factory.mktemp("program")

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        return run("bash", "-c", command.replace("client/examples", str(EXAMPLES)), folder=folder)

    match tool:
        case "java" if not GSON.exists():
            pytest.skip("needs Gson, libgoogle-gson-java")
        case "g++":
            done = shell(f"{build} {WARNINGS_ARE_ERRORS}")
            if missing := re.search(r"fatal error: (curl/curl\.h|nlohmann/json\.hpp): No such file", done.stderr):
                pytest.skip(f"needs {missing[1]}, libcurl4-openssl-dev and nlohmann-json3-dev")
            assert done.returncode == 0, done.stderr
        case "cargo":
            if not any(CRATES.glob("serde_json-*")):
                pytest.skip("needs serde_json, librust-serde-json-dev")
            (folder / ".cargo").mkdir()
            (folder / ".cargo" / "config.toml").write_text(OFFLINE)
            shutil.copytree(EXAMPLES / "rust", folder / "rust")
            start = start.replace("client/examples/", "")
            done = shell(start.replace("run", "build").removesuffix(" --"))
            assert done.returncode == 0, done.stderr

    def compiled() -> Run:
        build, again = BUILT.get(request.param, ("true", start))
        done = shell(build)
        assert done.returncode == 0, done.stderr
        return lambda url: shell(f"{again} {url}")

    return Program(lambda url: shell(f"{start} {url}"), compiled)


def test_a_program_prints_the_python_client_s_loss_to_the_last_digit(program: Program, service: Running) -> None:
    done = program.run(service.url)
    assert done.returncode == 0, done.stderr
    loss, gradient = re.fullmatch(r"loss (\S+)\ngradient \[?(.*?)\]?\n", done.stdout).groups()
    assert float(loss) == remote_loss(service)
    found = torch.tensor([float(entry) for entry in re.split("[, ]+", gradient)], dtype=torch.float64).reshape(2, 3)
    torch.testing.assert_close(found, focal()[1], rtol=1e-5, atol=1e-7)


def test_a_program_sends_what_the_reference_library_reads_and_believes_no_wrong_answer(program: Program) -> None:
    """That it believes the right answer is shown above."""
    loss, gradient = focal()
    right, run = gradient.float().numpy(), program.compiled()
    service = FakeService()
    try:
        service.replies += [
            evaluation({"loss": loss * 1.001}, gradient__prediction=right),
            evaluation({"loss": loss}, gradient__prediction=-right),
            problem(422, "shape-mismatch", "the target has too many rows"),
        ]
        done = [run(service.url) for _ in range(len(service.replies))]
    finally:
        service.stop()
    assert [each.returncode for each in done] == [1, 1, 1], [each.stderr for each in done]
    assert all("this is not the focal loss" in each.stderr for each in done[:2])
    assert "the target has too many rows" in done[2].stderr
    assert len(service.requests) == 3
    for request in service.requests:
        assert request.document == {"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]}
        assert request.headers["Authorization"] == "Bearer secret"
        sent = reference.load(request.body)
        assert sent.keys() == {"prediction", "target"}
        np.testing.assert_array_equal(sent["prediction"], PREDICTION, strict=True)
        np.testing.assert_array_equal(sent["target"], TARGET, strict=True)


@pytest.mark.skipif(shutil.which("java") is None, reason="needs java")
def test_an_objective_in_java_has_the_layout_of_each_library(service: Running) -> None:
    done = run("java", EXAMPLES / "java" / "Objective.java", service.url)  # it compares with the definition itself
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gradient [-0.33475")
    assert "hessian [0.44539" in done.stdout
    assert "hessian, class by class [0.33404" in done.stdout


# curl


@needs_curl
def test_curl(service: Running) -> None:
    done = run("bash", EXAMPLES / "curl" / "evaluate.sh", service.url)
    assert done.returncode == 0, done.stderr
    text, binary = re.fullmatch("JSON:\n(.*)\nsafetensors:\n(.*)\n", done.stdout, re.DOTALL).groups()
    answer = json.loads(text)
    assert answer["loss"] == remote_loss(service)
    torch.testing.assert_close(
        torch.tensor(answer["gradient"]["prediction"], dtype=torch.float64), focal()[1], rtol=1e-5, atol=1e-7
    )
    answer = json.loads(binary)
    assert answer["loss"] == 2.0
    assert answer["gradient"] == {"prediction": [0.0, -2.0]}


@needs_curl
def test_curl_fails_where_the_service_refuses(service: Running) -> None:
    done = run("bash", EXAMPLES / "curl" / "evaluate.sh", f"{service.url}/elsewhere")
    assert done.returncode != 0
    assert "not-found" in done.stdout


@needs_curl
@pytest.mark.parametrize("shape", [(1,), (7, 3), (2, 3, 5, 1)])
def test_a_file_of_the_reference_library_is_posted_as_it_is(
    shape: tuple[int, ...], service: Running, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    prediction, target = random.standard_normal((2, *shape)).astype(np.float32)
    # The library writes tensors in the order of their dtypes and names, and a header whose data starts on 8 bytes.
    reference.save_file(
        {"target": target, "prediction": prediction, "sample_weight": np.ones(shape[0])},
        tmp_path / "batch.safetensors",
        {"format": "np", "note": 'with "quotes" and ü'},
    )
    command = f"lossd=(curl --silent --fail-with-body); url={service.url}; file={tmp_path}/batch.safetensors\n"
    done = run("bash", "-euc", command + excerpt("client/examples/curl/evaluate.sh", "file"))
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    difference = prediction.astype(np.float64) - target
    assert answer["loss"] == pytest.approx((difference**2).mean(), rel=1e-6)
    np.testing.assert_allclose(answer["gradient"]["prediction"], 2 * difference / difference.size, rtol=1e-5)


# Node


@needs_node
def test_node(service: Running) -> None:
    done = run("node", EXAMPLES / "node" / "evaluate.mjs", service.url)
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"^loss (\S+)$", done.stdout, re.MULTILINE)[1]) == remote_loss(service)
    shape, entries = re.search(
        r"^gradient \[ (.*?) \] Float32Array\(6\) \[(.*?)\]", done.stdout, re.DOTALL | re.MULTILINE
    ).groups()
    assert shape == "2, 3"
    found = torch.tensor([float(entry) for entry in entries.split(",")], dtype=torch.float64).reshape(2, 3)
    torch.testing.assert_close(found, focal()[1], rtol=1e-5, atol=1e-7)


@needs_node
def test_node_tells_what_the_service_says(service: Running) -> None:
    script = f"""
        import {{ evaluate }} from {json.dumps(str(EXAMPLES / "node" / "evaluate.mjs"))};
        const prediction = {{ data: Float64Array.of(1, 2), shape: [2] }};
        const target = {{ data: Float32Array.of(1, 4), shape: [2] }};
        const request = {{ loss: {{ name: "mse", reduction: "none" }} }};
        const answer = await evaluate("{service.url}", request, {{ target, prediction }});
        console.log(JSON.stringify([Array.from(answer.loss.data), Array.from(answer.gradients.prediction.data)]));
        request.loss.name = "mze";
        await evaluate("{service.url}", request, {{ target, prediction }});
    """
    done = run("node", "--input-type=module", "--eval", script)
    assert json.loads(done.stdout) == [[0, 4], [0, -4]]
    assert done.returncode != 0
    assert re.search(r"Unknown loss: .*'mze'.* \(request \S+\)", done.stderr)


@needs_node
def test_node_scores_a_data_set_and_goes_on_where_it_was(service: Running) -> None:
    for _ in range(2):  # the second time, everything has been counted
        done = run("node", EXAMPLES / "node" / "score.mjs", service.url)
        assert (done.returncode, done.stdout) == (0, "accuracy 0.75 of 1000 rows\n"), done.stderr
    found = httpx.get(f"{service.url}/v1/runs/from-node").json()
    assert (found["status"], found["counted"]) == ("sealed", {"rows": 1000, "entries": 1000, "batches": 10})


# The Open Inference Protocol


def test_triton_s_client_shares_memory() -> None:
    with running(engine="inline", shared_memory=True) as service:
        done = python(EXAMPLES / "triton" / "shared.py", service.url)
    assert done.returncode == 0, done.stderr
    assert "none of which went through a socket" in done.stdout


def test_triton_s_client(service: Running) -> None:
    for address in (service.url, service.url.removeprefix("http://")):
        done = python(EXAMPLES / "triton" / "evaluate.py", address)
        assert done.returncode == 0, done.stderr
        loss, gradient = re.fullmatch(r"loss (\S+)\ngradient (.*)\n", done.stdout).groups()
        assert float(loss) == remote_loss(service)
        found = torch.tensor(json.loads(gradient), dtype=torch.float64).reshape(2, 3)
        torch.testing.assert_close(found, focal()[1], rtol=1e-5, atol=1e-7)
