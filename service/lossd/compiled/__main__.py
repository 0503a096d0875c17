"""``python -m lossd.compiled``: compile for this machine's processor, as ``lossd compile`` does."""

from __future__ import annotations

import logging
import sys

from lossd.compiled.building import compile_and_keep

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(0 if compile_and_keep() else 1)
