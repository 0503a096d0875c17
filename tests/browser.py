"""The browser that tests drive."""

from __future__ import annotations

import shutil

import pytest

__all__ = ["FLAGS", "browser_path"]

# The first is the same browser without windows; it takes half the processor time.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Its own sandbox needs rights that a container, or root, does not have; it visits what the tests serve alone.
# A process of its own for drawing takes up to a sixth more processor time.
FLAGS = ("--no-sandbox", "--disable-gpu", "--in-process-gpu")


def browser_path() -> str:
    """Return the path of an installed browser; skip the test if there is none."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    return path
