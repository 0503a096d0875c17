from __future__ import annotations

import httpx
import pytest
from tritonclient.http import InferenceServerClient

from serving import Running, running


@pytest.fixture(scope="session")
def service():
    with running() as service:
        yield service


@pytest.fixture(scope="session")
def http(service: Running):
    with httpx.Client(base_url=service.url, timeout=30) as http:
        yield http


@pytest.fixture(scope="session")
def triton(service: Running):
    with InferenceServerClient(f"127.0.0.1:{service.port}", concurrency=64) as client:
        yield client
