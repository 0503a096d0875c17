"""A store on SQLite and on PostgreSQL, for the same tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lossd.recorder.store import Limits, Store
from postgres import PostgreSQL, programs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server, started when the first test needs it."""
    if programs() is None:
        pytest.skip("PostgreSQL's programs are not installed")
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "runs.db")
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.new_schema()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(url: str, clock: Clock) -> Iterator[Callable[..., Store]]:
    """Opens the store with some limits; closes all that it opened."""
    stores: list[Store] = []

    def open_one(**limits: float | None) -> Store:
        stores.append(Store(url, Limits(**limits), clock=clock))  # type: ignore[arg-type]
        stores[-1].open()
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[..., Store]) -> Store:
    """The store with the default limits."""
    return opened()
