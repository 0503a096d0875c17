"""How tests are shared among processes: how many there are, which tests begin, and which ones may run again."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read where torch is loaded. Tests have more threads than the machine has cores: those that wait for each other by
# asking again and again, as they do otherwise, take two thirds of the time of tests with threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

EXPLORER = Path(__file__).parent / "explorer"


def pytest_configure(config: pytest.Config) -> None:
    """Import what tests need where they run; the process that only hands them out would take seconds for it."""
    hands_out = getattr(config.option, "dist", "no") != "no" and not hasattr(config, "workerinput")
    config.pluginmanager.register(importlib.import_module("forking" if hands_out else "process"))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Two processes more than cores: many tests wait, for a process to start or end, or for a limit of time."""
    return (os.cpu_count() or 1) + 2


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector, which would walk over thousands of tests again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # tests live as long as the process
        gc.set_threshold(10_000)  # not 700: a 25th of the time that tests take would be the collector's
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that measures time runs again when it fails; every other failure is final.

    Tests that may take longer than others begin first: at the end, the other processes would wait for them.
    """
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))
    usual_s = float(config.getini("timeout"))

    def limit_s(item: pytest.Item) -> float:
        limit = item.get_closest_marker("timeout")
        return usual_s if limit is None else max(usual_s, limit.args[0])

    items.sort(key=limit_s, reverse=True)
    _begin_with_the_browser(config, items)


def _begin_with_the_browser(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Move the tests of the explorer to where the last process begins, so that it runs most of them.

    Each process that runs one of them starts a browser and a service, and loads the views. At the end of a run, the
    tests that are left are shared among all processes: then each would start a browser.
    """
    processes: int = getattr(config, "workerinput", {}).get("workercount", 1)
    explorer = [item for item in items if EXPLORER in item.path.parents]
    others = [item for item in items if EXPLORER not in item.path.parents]
    begin = len(items) * (processes - 1) // processes + processes - 1  # xdist rounds each process's share down
    items[:] = others[:begin] + explorer + others[begin:]
