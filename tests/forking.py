"""What is done once for all processes that run tests: their imports, and the rewriting of tests' assertions.

They are forked from a process that has imported what tests need.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, closing
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import patch

import pytest
from _pytest.assertion import rewrite
from execnet.gateway_base import ThreadExecModel

from warm import WarmProcess

TESTS = Path(__file__).parent
LATE = ("torch.fx.experimental.symbolic_shapes", "torch._dynamo")  # torch imports them with a derivative: 1.7 s
IMPORTED = re.compile(r"^(?:from|import) ([\w.]+)", re.MULTILINE)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Let a process import what each of those that run tests would, and write the bytecode of tests meanwhile."""
    paths = sorted(TESTS.rglob("test_*.py"))
    warm = WarmProcess()
    cleanup = ExitStack()
    config.add_cleanup(cleanup.close)
    cleanup.enter_context(closing(warm))
    cleanup.enter_context(patch.object(ThreadExecModel, "subprocess", warm))
    warm.import_before(["process", *LATE, *imported(paths)])
    rewrite_assertions(config, paths)


def imported(paths: list[Path]) -> list[str]:
    """Return the modules that tests import, but for other tests."""
    names = {name for path in paths for name in IMPORTED.findall(path.read_text())}
    return sorted(name for name in names if not re.search(r"(^|\.)(test_|conftest)", name))


def rewrite_assertions(config: pytest.Config, paths: list[Path]) -> None:
    """Write the bytecode of tests that is missing. pytest does it where it runs a module; here none is run."""
    hook = config.pluginmanager.rewrite_hook
    with patch.object(rewrite, "exec", lambda code, names: None, create=True):
        for path in paths:
            spec = spec_from_file_location(path.stem, path, loader=hook)
            assert spec is not None
            hook.exec_module(module_from_spec(spec))
