"""What every test has: which ones may run again, and the weights of the perceptual loss in a file."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from lossd import compiled
from losses.cases_perceptual import WEIGHTS


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect without the garbage collector, which would walk over thousands of tests again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # tests live as long as the process
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that measures time runs again when it fails; every other failure is final."""
    for item in items:
        if item.get_closest_marker("timed"):
            item.add_marker(pytest.mark.flaky(reruns=2))


@pytest.fixture(autouse=True)
def _compiled_passes_are_loaded_by_who_tests_them(request: pytest.FixtureRequest) -> Iterator[None]:
    """An inline engine loads them for its process, which the tests share."""
    before = compiled._find, compiled.rates
    tests_them = request.node.nodeid.startswith("tests/compiled/") or "compiled_passes" in request.fixturenames
    if not tests_them:
        compiled._find = compiled.rates = None
    yield
    compiled._find, compiled.rates = before


@pytest.fixture(scope="module")
def compiled_passes() -> Iterator[None]:
    """The compiled passes, loaded for the tests of a module and for no others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "_find", None)
        patch.setattr(compiled, "rates", None)
        compiled.load()
        yield


@pytest.fixture(scope="session", autouse=True)
def _perceptual_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """VGG16's layers, narrow and random, in a file as the service reads it."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(WEIGHTS, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOSSD_PERCEPTUAL_WEIGHTS", str(path))
        yield
