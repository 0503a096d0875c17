"""The programs in other languages, run as a reader would run them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serving import Running, running

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=60)


def focal() -> tuple[float, torch.Tensor]:
    """The examples' loss and gradient, from the definition."""
    prediction = torch.tensor([[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], dtype=torch.float64, requires_grad=True)
    logs = torch.log_softmax(prediction, 1)[[0, 1], [0, 1]]
    loss = (-((1 - logs.exp()) ** 2) * logs).mean()
    loss.backward()
    assert prediction.grad is not None
    return loss.item(), prediction.grad


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(service: Running) -> None:
    done = run("bash", EXAMPLES / "curl" / "evaluate.sh", service.url)
    assert done.returncode == 0, done.stderr
    text, binary = re.fullmatch("JSON:\n(.*)\nsafetensors:\n(.*)\n", done.stdout, re.DOTALL).groups()
    loss, gradient = focal()
    answer = json.loads(text)
    assert answer["loss"] == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(
        torch.tensor(answer["gradient"]["prediction"], dtype=torch.float64), gradient, rtol=1e-5, atol=1e-7
    )
    answer = json.loads(binary)
    assert answer["loss"] == 2.0
    assert answer["gradient"] == {"prediction": [0.0, -2.0]}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_fails_where_the_service_refuses(service: Running) -> None:
    done = run("bash", EXAMPLES / "curl" / "evaluate.sh", f"{service.url}/elsewhere")
    assert done.returncode != 0
    assert "not-found" in done.stdout


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_node(service: Running) -> None:
    done = run("node", EXAMPLES / "node" / "evaluate.mjs", service.url)
    assert done.returncode == 0, done.stderr
    loss, gradient = focal()
    assert float(re.search(r"^loss (\S+)$", done.stdout, re.MULTILINE)[1]) == pytest.approx(loss, rel=1e-6)
    shape, entries = re.search(
        r"^gradient \[ (.*?) \] Float32Array\(6\) \[(.*?)\]", done.stdout, re.DOTALL | re.MULTILINE
    ).groups()
    assert shape == "2, 3"
    found = torch.tensor([float(entry) for entry in entries.split(",")], dtype=torch.float64).reshape(2, 3)
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
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
