"""Fuzzing of the codecs that is guided by their coverage: ``python tests/fuzz/codecs.py -max_total_time=60``.

It takes atheris. The first byte of an input says which codec is to read the rest. Arguments are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["lossd_client"]):
    import lossd_client.wire.json
    import lossd_client.wire.oip
    import lossd_client.wire.safetensors  # noqa: F401  (what is instrumented)

from fuzz.mutations import SEEDS, Sent
from fuzz.oracle import check_codecs
from lossd_client.wire import oip

FORMS = {"json": 0, "safetensors": 1, "oip": 2}


def read(data: bytes) -> None:
    """Read one input."""
    if len(data) < 3:
        return
    form, length, body = data[0] % 3, int.from_bytes(data[1:3], "little"), data[3:]
    if form == FORMS["oip"]:
        headers = {oip.HEADER_LENGTH: str(length)} if length else {}
        check_codecs(Sent("/v2/models/mse/infer", body, headers))
    else:
        check_codecs(Sent("/v1/evaluate", body, {"Content-Type": "application/json"} if form == FORMS["json"] else {}))


def main() -> None:
    """Fuzz until libFuzzer has enough, from the seeds on."""
    with tempfile.TemporaryDirectory() as folder:
        for number, sent in enumerate(SEEDS):
            length = int(sent.headers.get(oip.HEADER_LENGTH, 0))
            head = bytes((FORMS[sent.form],)) + length.to_bytes(2, "little")
            (Path(folder) / str(number)).write_bytes(head + sent.body)
        atheris.Setup([*sys.argv, folder], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
