"""``python -m lossd.compiled``: compile for this machine's processor, so that no worker has to."""

from __future__ import annotations

from lossd.compiled import compile_and_keep

if __name__ == "__main__":
    compile_and_keep()
