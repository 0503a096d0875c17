"""Writes a database of the newest schema beside this file: ``python tests/recorder/schemas/make.py``.

There is one for each schema, which later versions must open; ``tests/recorder/test_migrations.py`` says what it
contains. Make it again only while its schema is in no release.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from lossd.recorder.schema import VERSION  # noqa: E402
from lossd.recorder.store import Store  # noqa: E402
from recorder.reports import batch, document  # noqa: E402


def make(path: Path) -> None:
    """Write the database."""
    path.unlink(missing_ok=True)
    store = Store(str(path), clock=lambda: 1_800_000_000.0)
    store.open()
    for name in ("open", "sealed"):
        for identity in ("position", "id", "batch"):
            body = document(identity, dataset={"name": "digits", "version": "1"}, tags={"commit": "4f1c"})
            run = store.create("ann", f"{name}-{identity}", body, "d" * 64)[0]["id"]
            store.count([batch(run, f"b{k}", range(4 * k, 4 * k + 4), identity) for k in range(3)])
            if name == "sealed":
                revision = store.merged(run)[0]["revision"]
                store.seal(run, revision, 12, {"metrics": {"accuracy": 0.5}}, {"accuracy": 0.5})
    store.create("ann", "deleted", document(), "d" * 64)
    store.delete("ann", "deleted")
    store.close()
    path.with_name(f"{path.name}.lock").unlink()


if __name__ == "__main__":
    make(HERE / f"{VERSION}.db")
