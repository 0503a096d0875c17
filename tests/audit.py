"""``make audit``: known vulnerabilities of the pinned packages, from the database that pip-audit asks.

A database that does not answer looks as if nothing were known. So a release with a known vulnerability is audited too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KNOWN = "pyyaml==5.3.1"
"""A release with a known vulnerability, CVE-2020-14343, that is not pinned."""

Report = Sequence[dict[str, Any]]


def pins() -> list[str]:
    """Return every pin, as ``name==version``."""
    return re.findall(r"^[a-z0-9-]+==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def report(requirements: Sequence[str]) -> Report | None:
    """Return what is known of each requirement; None if pip-audit fails."""
    with tempfile.TemporaryDirectory() as folder:
        listed, answer = Path(folder) / "requirements.txt", Path(folder) / "report.json"
        listed.write_text("\n".join(requirements))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), "--no-deps", "--disable-pip"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", str(answer)]
        subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return json.loads(answer.read_text())["dependencies"] if answer.exists() else None


def verdict(found: Report | None) -> tuple[str, int]:
    """Return what to print of a report, and the exit status: 1 if a pinned package has a known vulnerability."""
    vulnerable = {f"{entry['name']}=={entry.get('version')}": entry.get("vulns", []) for entry in found or ()}
    if not vulnerable.pop(KNOWN, None):
        return "Nothing is audited: no database of vulnerabilities can be reached here.", 0
    lines = [
        f"{name}: {fault['id']}, fixed in {' or '.join(fault['fix_versions']) or 'no release'}"
        for name, faults in vulnerable.items()
        for fault in faults
    ]
    return "\n".join(lines) or f"{len(vulnerable)} packages have no known vulnerability.", int(bool(lines))


def main() -> None:
    """Audit the pins."""
    text, status = verdict(report([*pins(), KNOWN]))
    print(text)
    sys.exit(status)


if __name__ == "__main__":
    main()
