"""The documentation as a website: ``python tests/website.py`` builds it into build/docs/site, or says what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.site import build

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    faults = build(ROOT / "build/docs")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{'not ' if faults else ''}built: {ROOT / 'build/docs/site/index.html'}")
    sys.exit(bool(faults))
