from __future__ import annotations

import pytest

from lossd_client.wire import json


@pytest.fixture(params=["orjson", "standard library"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read and write JSON text: with orjson and without."""
    if request.param == "standard library":
        monkeypatch.setattr(json, "orjson", None)
    return str(request.param)
