"""What a process that runs tests has: warm workers, the weights of the perceptual loss in a file, and fixtures."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from _pytest.runner import runtestprotocol
from hypothesis import settings

import evaluating
from chaos import service
from fronts import group
from lossd.api import drawing
from lossd.compiled.passes import Passes
from lossd.engine import worker_process
from lossd.recorder import keeper
from losses.cases_perceptual import WEIGHTS
from warm import WarmProcess

# A busy machine is no fault; each run draws other examples, and ``make fuzz`` draws many.
settings.register_profile("lossd", deadline=None, max_examples=50)
settings.load_profile("lossd")

# The tensors are small, and each core has a process of tests or two: more threads would only wait for each other.
torch.set_num_threads(1)

# The first comparison of two tensors would import torch.distributed and SymPy, for a second, to know its own kind.
torch.testing._comparison._HAS_DTENSOR = False

# pytest attaches its handlers to each logger that does not propagate, six times a test: torch has 41 such loggers.
for _logger in map(logging.getLogger, list(logging.root.manager.loggerDict)):
    _logger.propagate = True


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Set this process's variables and files before its tests, and fork its processes of lossd from a warm one.

    Fixtures of the session would be looked up again for each of thousands of tests.
    """
    cleanup = ExitStack()
    session.config.add_cleanup(cleanup.close)
    patch = cleanup.enter_context(pytest.MonkeyPatch.context())
    _set_variables(Path(cleanup.enter_context(TemporaryDirectory())), patch)
    warm = worker_process.subprocess
    if warm is subprocess:  # this process was not forked from a warm one, as it is by ``forking``
        warm = cleanup.enter_context(closing(WarmProcess()))
    for starter in (worker_process, keeper, drawing, service, group):
        patch.setattr(starter, "subprocess", warm)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Report a test that passes by one message to the process that hands out tests, not by five.

    Those that say that a test begins, is set up, torn down and has ended take longer than most tests.
    """
    option = item.config.option
    handed_out = hasattr(item.config, "workerinput") and nextitem is not None
    if not handed_out or option.durations or option.xmlpath or item.get_closest_marker("flaky"):
        return None
    for report in runtestprotocol(item, nextitem=nextitem, log=False):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    return True


def _set_variables(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Name files in a folder by variables: narrow random layers of VGG16, runs, and no certificate authority.

    Runs are never kept among the user's. httpx reads all authorities for each client, which takes 40 ms.
    """
    weights, runs, authorities = folder / "vgg16.pth", folder / "runs", folder / "authorities"
    torch.save(WEIGHTS, weights)
    runs.mkdir()
    authorities.mkdir()
    patch.setenv("LOSSD_PERCEPTUAL_WEIGHTS", str(weights))
    patch.setenv("XDG_DATA_HOME", str(runs))
    patch.delenv("SSL_CERT_FILE", raising=False)
    patch.setenv("SSL_CERT_DIR", str(authorities))


@pytest.fixture(scope="session")
def passes() -> Passes:
    """The compiled passes, loaded; compiled first if their code is not stored."""
    passes = Passes()
    passes.load()
    return passes


@pytest.fixture(scope="module")
def compiled_passes(passes: Passes) -> Iterator[None]:
    """Evaluate with compiled passes in a module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluating, "passes", passes)
        yield


@pytest.fixture
def either_way(request: pytest.FixtureRequest, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with compiled passes or the general way, as its parameter says."""
    monkeypatch.setattr(evaluating, "passes", passes if request.param == "compiled" else None)
