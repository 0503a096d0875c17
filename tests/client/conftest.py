from __future__ import annotations

from collections.abc import Iterator

import pytest

from client.fake import Caller, FakeService


@pytest.fixture
def service() -> Iterator[FakeService]:
    fake = FakeService()
    yield fake
    fake.stop()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)
