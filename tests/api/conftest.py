from __future__ import annotations

import httpx
import pytest

from serving import Running, running


@pytest.fixture(scope="session")
def service():
    with running() as service:
        yield service


@pytest.fixture(scope="session")
def http(service: Running):
    with httpx.Client(base_url=service.url, timeout=30) as http:
        yield http
