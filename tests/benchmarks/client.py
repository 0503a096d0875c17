"""What the Python client costs: memory for a large request, time for a small one, and time to choose an address.

    python tests/benchmarks/client.py                              measures services of its own
    python tests/benchmarks/client.py --url http://127.0.0.1:8000  measures the one that runs there

Time is that of the client's thread, so that neither the service nor whatever else runs on the machine counts.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from lossd_client import LossClient
from lossd_client.messages import compose
from lossd_client.wire import safetensors

SEGMENTATION = (1, 21, 1024, 1024)
LARGEST_FACTOR = 1.2
"""How many times the body the client may need on top of the caller's tensors."""
LARGEST_US = 100.0
"""How much longer a small call may take than posting the same bytes with httpx."""
LARGEST_CHOICE = 1.1
"""How many times as long a small call may take with two addresses as with one."""
CALLS = 3000


def main() -> None:
    """Measure, print, and fail where a bound is passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--url", help="a running service; by default one is started for the occasion")
    parser.add_argument("--memory-of", nargs="*", metavar="OUTPUT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(memory(arguments.url, arguments.memory_of)))
        return
    with nullcontext(arguments.url) if arguments.url else running_service() as url:
        passed = [report_memory(url, outputs) for outputs in (["loss"], ["loss", "gradient"])]
        passed.append(report_time(url))
        with running_service() as other:
            passed.append(report_addresses(url, other))
    sys.exit(not all(passed))


@contextmanager
def running_service() -> Iterator[str]:
    """A service on a free port of this machine, for as long as the block lasts."""
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port", "0", "--threads", "1", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://[^\s,]+", process.stdout.readline())
            if address is None:
                sys.exit("the service did not start")
            with LossClient(address[0]) as lossd:
                lossd.wait_until_ready()
            yield address[0]
        finally:
            process.terminate()


# Memory


def report_memory(url: str, outputs: list[str]) -> bool:
    """In a process of its own, because a peak is one of the whole process, and for good."""
    command = [sys.executable, __file__, "--url", url, "--memory-of", *outputs]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    factor = (found["peak"] - found["tensors"]) / found["body"]
    print(
        f"memory, {SEGMENTATION} float32 with int64 target, {' and '.join(outputs)}: "
        + ", ".join(f"{name} {count / 1e6:.1f} MB" for name, count in found.items())
        + f"; beyond the tensors {factor:.2f} times the body (at most {LARGEST_FACTOR})"
    )
    return bool(factor <= LARGEST_FACTOR)


def memory(url: str, outputs: list[str]) -> dict[str, int]:
    """Bytes of the tensors, of the body, and of the peak above the process that has made a small request."""
    with LossClient(url) as lossd:
        ask = lambda *inputs: lossd.evaluate("cross_entropy", *inputs, outputs=outputs)  # noqa: E731
        ask(np.zeros((2, 3), np.float32), np.zeros(2, np.int64))
        before = status_bytes("VmRSS")
        random = np.random.default_rng(0)
        prediction = random.standard_normal(SEGMENTATION, np.float32)
        target = random.integers(0, SEGMENTATION[1], (SEGMENTATION[0], *SEGMENTATION[2:]))
        composed = compose("cross_entropy", prediction, target, outputs=outputs, keywords={})
        evaluation = ask(prediction, target)
        assert evaluation.gradient is None or evaluation.gradient.shape == prediction.shape
    return {
        "tensors": prediction.nbytes + target.nbytes,
        "body": composed.body.nbytes,
        "peak": status_bytes("VmHWM") - before,
    }


def status_bytes(field: str) -> int:
    """A size of this process, as Linux tells it."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024


# Time


class Recorded(httpx.BaseTransport):
    """Gives the same answer to whatever is sent, at once: what is measured above it is Python, and nothing else."""

    def __init__(self, answer: httpx.Response) -> None:
        self._head = [(name, value) for name, value in answer.headers.raw if name.lower() != b"content-length"]
        self._body = answer.content

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Take the body and answer."""
        request.read()
        return httpx.Response(200, headers=self._head, stream=httpx.ByteStream(self._body))


def report_time(url: str) -> bool:
    """How much longer a loss, its gradient and metrics of (64, 10) take than to post and read the same bytes.

    The bound is held to where no socket is in the way: behind one, whoever shares the machine's caches has a say.
    """
    random = np.random.default_rng(0)
    prediction, target = random.standard_normal((64, 10), np.float32), random.integers(0, 10, 64)
    outputs = ["loss", "gradient", "metrics"]
    body = b"".join(compose("cross_entropy", prediction, target, outputs=outputs, keywords={}).body)
    headers = {"Content-Type": safetensors.MEDIA_TYPE, "Accept": safetensors.MEDIA_TYPE}
    address = f"{url}/v1/evaluate"
    answer = httpx.post(address, content=body, headers=headers).raise_for_status()
    own_us = 0.0
    for place, transport in (("over a socket", None), ("without one", Recorded(answer))):
        with httpx.Client(transport=transport) as http:
            evaluate = partial(LossClient(url, http=http).evaluate, "cross_entropy", prediction, target)
            found = alternate(
                {
                    "client": partial(evaluate, outputs=outputs),
                    "httpx": partial(http.post, address, content=body, headers=headers),
                }
            )
        own_us = found["client"] - found["httpx"]
        print(
            f"time, (64, 10) float32 with int64 target, {', '.join(outputs)}, {place}: "
            f"a call {found['client']:.0f} us, httpx alone {found['httpx']:.0f} us; "
            f"the client's own {own_us:.0f} us (at most {LARGEST_US:.0f})"
        )
    return own_us <= LARGEST_US


def report_addresses(url: str, other: str) -> bool:
    """How many times as long a loss, its gradient and metrics of (64, 10) take with two addresses as with one."""
    random = np.random.default_rng(0)
    prediction, target = random.standard_normal((64, 10), np.float32), random.integers(0, 10, 64)
    with LossClient(url) as one, LossClient(f"{url},{other}") as two:
        found = alternate(
            {
                name: partial(client.evaluate, "cross_entropy", prediction, target)
                for name, client in (("one", one), ("two", two))
            }
        )
    ratio = found["two"] / found["one"]
    print(
        f"time, (64, 10) float32 with int64 target: with one address {found['one']:.0f} us, with two "
        f"{found['two']:.0f} us; {ratio:.2f} times (at most {LARGEST_CHOICE})"
    )
    return ratio <= LARGEST_CHOICE


def alternate(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Microseconds of this thread that each call takes: the median of many, taken in turns, lest one have it better."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(CALLS):
        for name, call in calls.items():
            begin = time.thread_time_ns()
            call()
            samples[name].append((time.thread_time_ns() - begin) / 1e3)
    return {name: statistics.median(taken) for name, taken in samples.items()}


if __name__ == "__main__":
    main()
