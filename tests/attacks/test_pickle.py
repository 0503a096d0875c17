"""Input is never unpickled, compiled or executed. One module loads code that this machine has compiled."""

from __future__ import annotations

import ast
import io
import pickle
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lossd_client.wire import safetensors

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for source in ("service/lossd", "client/lossd_client") for path in (ROOT / source).rglob("*.py"))

EXECUTES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "multiprocessing"}
EXECUTORS = Path("service/lossd/scoring/executors.py")
CHOICES = Path("service/lossd/compiled/arithmetic.py")
BUILTINS = {"eval", "exec", "compile", "__import__"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keywords(call: ast.Call) -> dict[str | None, Any]:
    return {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in call.keywords}


WORDS = re.compile(rf"\b({'|'.join(EXECUTES | BUILTINS)}|loads?)\b")
"""What every module that could has in its text: only those are parsed."""


def test_no_module_can_unpickle_or_execute() -> None:
    texts = {path: path.read_text() for path in SOURCES}
    suspected = {path: text for path, text in texts.items() if WORDS.search(text)}
    assert {ROOT / EXECUTORS, ROOT / CHOICES} <= suspected.keys()
    for path, text in suspected.items():
        check(path, text)


def check(path: Path, text: str) -> None:
    """Fail if a module can unpickle or execute what it is given."""
    tree = ast.parse(text, str(path))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    executes = {name.partition(".")[0] for name in imported} & EXECUTES
    # The processes of `lossd score --on processes` speak pickle over pipes of their own parent, to nobody else.
    assert not executes - ({"multiprocessing"} if path.relative_to(ROOT) == EXECUTORS else set()), path
    for name, call in calls(tree):
        if name == "exec" and path.relative_to(ROOT) == CHOICES:  # its text is made of numbers, when it is imported
            continue
        assert name not in BUILTINS, f"{path}:{call.lineno}"
        if name == "serialize.loads":  # Numba's unpickling of code that the store vouches for
            assert path.name == "kernels.py"
            assert path.parent.name == "compiled"
        if name.endswith("np.load"):
            assert keywords(call)["allow_pickle"] is False, path
        if name == "torch.load":  # the operator's own file of weights
            assert keywords(call)["weights_only"] is True, path


class Harm:
    """What a pickle can be."""

    def __reduce__(self) -> Any:
        return (print, ("harm",))


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, prediction=np.array([Harm()], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("body", [pickle.dumps(Harm()), pickle.dumps(Harm(), 0), _npz()], ids=["pickle", "text", "npz"])
@pytest.mark.parametrize(
    "kind", [safetensors.MEDIA_TYPE, "application/json", "application/octet-stream", "application/x-pickle"]
)
@pytest.mark.parametrize("path", ["/v1/evaluate", "/v2/models/mse/infer"])
def test_a_pickle_is_just_a_malformed_body(
    body: bytes, kind: str, path: str, http: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = http.post(path, content=body, headers={"Content-Type": kind})
    assert answer.status_code in (400, 413, 415)
    assert "harm" not in capfd.readouterr().out
