from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from serving import Running, running

LIMITS = {
    "max_body_bytes": 1 << 20,
    "max_json_bytes": 64 << 10,
    "queue_bytes": 4 << 20,
    "stream_bytes": 256 << 10,
    "batch_bytes": 256 << 10,
}


@pytest.fixture(scope="package")
def service() -> Iterator[Running]:
    """A service with small limits, which has lost nothing when the tests are done with it."""
    with running(**LIMITS) as service:
        yield service
        service.wait_until(lambda engine: not engine.in_progress)
        assert service.engine.budget.held_bytes == 0
        assert service.engine.budget.gathered_bytes == 0
        assert service.engine.pool.in_use == 0


@pytest.fixture(scope="package")
def http(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as http:
        yield http
