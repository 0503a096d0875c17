"""Kernels become ready one by one, the most wanted first, whatever lies in the folder where code is kept."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numba import njit
from numba.core.sigutils import normalize_signature

from lossd.compiled import compile_order, recipes
from lossd.compiled.arithmetic import jit
from lossd.compiled.building import Compiler, build, load_kept
from lossd.compiled.kernels import KERNEL, Kernel, aot, kernel_of
from lossd.compiled.passes import CompileProgress, Passes
from lossd.compiled.store import CodeStore
from lossd.compiled.work import Work
from lossd.counting_kernels import CountingKernels
from lossd.engine import worker_process
from lossd.job import Recipe
from lossd.request.planning import make_plan

ROWS = "rows"

ANNOTATIONS = {"int64": "int", "float64": "float", "bool": "bool", "none": "None"}
"""How kernels annotate the types of Numba that are no arrays."""


class Compiled:
    """A kernel that is made of its name."""

    def __init__(self, name: str, demand: int = 0) -> None:
        self.name, self.demand, self.ready, self.failed = name, demand, False, False

    def load(self, code: bytes) -> None:
        if code != self.name.encode():
            raise pickle.UnpicklingError("that is no code")
        self.ready = True


def made_of(*names: str, **demands: int) -> list[Any]:
    return [Compiled(name, demands.get(name, 0)) for name in names]


def compile_one(kernel: Any) -> bytes:
    return bytes(kernel.name.encode())


def nothing() -> None:
    pass


@pytest.mark.parametrize("kernel", compile_order.KERNELS, ids=lambda kernel: kernel.name)
def test_a_kernel_s_types_are_as_many_as_its_arguments(kernel: Kernel) -> None:
    """What mypy compares calls with is the function; what Numba compiles is the text of types."""
    types, result = normalize_signature(kernel.signature)
    annotations = inspect.signature(kernel.function.py_func).parameters.values()
    assert [parameter.annotation for parameter in annotations] == [ANNOTATIONS.get(str(t), "Any") for t in types]
    assert inspect.signature(kernel.function.py_func).return_annotation == ANNOTATIONS[str(result)]


def test_what_metrics_and_runs_call_is_all_there() -> None:
    assert compile_order.COUNTING.keys() == CountingKernels.__annotations__.keys()


def test_a_kernel_that_is_loaded_twice_can_be_called() -> None:
    @aot("float64(float64)")
    def doubled(x: Any) -> Any:
        return 2 * x

    kernel = kernel_of(doubled)
    kernel.load(kernel.compile())
    assert doubled(3.0) == 6.0


@pytest.fixture
def store(tmp_path: Path) -> CodeStore:
    return CodeStore(tmp_path / "kept")


@pytest.fixture
def new_passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Passes of whose kernels none is ready in this process."""
    for kernel in compile_order.KERNELS:
        monkeypatch.setattr(kernel, "ready", False)
        monkeypatch.setattr(kernel, "demand", 0)
    return Passes()


def recipe(loss: str, dtype: str = "float32", target: str = "int64") -> Recipe:
    trailing = (2, 4) if target == "int64" else (2,)
    plan = make_plan({"loss": {"name": loss}, "outputs": ["loss", "gradient"]})
    return plan.job({"prediction": (dtype, trailing), "target": (target, (2,))}).recipe


def test_the_hottest_are_compiled_first_and_each_is_used_as_soon_as_it_is_there(store: CodeStore) -> None:
    kernels, seen = made_of("a", "b", "c"), []
    build(kernels, store, compile_one, lambda: seen.append([kernel.ready for kernel in kernels]))
    assert seen == [[True, False, False], [True, True, False], [True, True, True]]


def test_what_requests_ask_for_goes_before_what_is_hot_by_default(store: CodeStore) -> None:
    kernels, made = made_of("a", "b", "c", "d", c=1), []

    def compile_and_ask(kernel: Any) -> bytes:
        made.append(kernel.name)
        kernels[3].demand += 5  # somebody asks while the first is compiled
        return compile_one(kernel)

    build(kernels, store, compile_and_ask, nothing)
    assert made == ["c", "d", "a", "b"]


def test_what_cannot_be_compiled_keeps_nobody_else_from_it(store: CodeStore, caplog: pytest.LogCaptureFixture) -> None:
    kernels = made_of("a", "b", "c")

    def fail_once(kernel: Any) -> bytes:
        if kernel.name == "b":
            raise RuntimeError("no such instruction")
        return compile_one(kernel)

    build(kernels, store, fail_once, nothing)
    assert [(kernel.ready, kernel.failed) for kernel in kernels] == [(True, False), (False, True), (True, False)]
    assert "b cannot be compiled: no such instruction; its requests go the general way" in caplog.text


def test_a_process_that_cannot_be_started_is_tried_again(
    store: CodeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = made_of("a", "b")
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds) if seconds else None)
    compiler = Compiler()
    refusals = iter([BlockingIOError(11, "Resource temporarily unavailable")] * 3)

    def start_at_last(kernel: Any) -> bytes:
        for refusal in refusals:
            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "Popen", Mock(side_effect=refusal))
                return compiler(kernel)
        return compile_one(kernel)

    build(kernels, store, start_at_last, nothing)
    assert all(kernel.ready and not kernel.failed for kernel in kernels)
    assert waits == [1.0, 2.0, 4.0]
    assert caplog.text.count("nothing can be compiled now") == 3


def test_several_processes_do_not_compile_the_same_twice(store: CodeStore) -> None:
    made: list[str] = []
    names = ("a", "b", "c", "d")

    def slowly(kernel: Any) -> bytes:
        made.append(kernel.name)
        time.sleep(0.05)
        return compile_one(kernel)

    groups = [made_of(*names) for _ in range(3)]
    threads = [
        threading.Thread(target=build, args=(group, CodeStore(store.folder), slowly, nothing)) for group in groups
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(made) == sorted(names)
    assert all(kernel.ready for group in groups for kernel in group)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
        lambda path: path.chmod(0o666),
        lambda path: path.chmod(0o664),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: path.unlink() or os.mkfifo(path),
        lambda path: (path.unlink(), path.symlink_to(path)),
    ],
    ids=["empty", "cut", "checksum only", "changed", "others", "group", "folder", "endless", "pipe", "loop"],
)
def test_a_file_that_is_no_code_is_compiled_again(
    store: CodeStore, harm: Callable[[Path], object], caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    assert store.write("a", b"a")
    assert store.read("a") == b"a"
    path = store._path("a")
    harm(path)
    assert store.read("a") is None
    if request.node.callspec.id in ("empty", "cut", "checksum only", "changed"):
        assert f"{path} is not used: it is not whole; it is compiled again" in caplog.messages
    (kernel,) = made_of("a")
    build([kernel], store, compile_one, nothing)
    assert kernel.ready


def test_code_that_another_user_wrote_is_not_read(store: CodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a", b"a")
    os.chown(store._path("a"), 12345, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert store.read("a") is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_folder_that_others_can_write_is_not_used(
    store: CodeStore, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert store.write("a", b"b")
    assert store.folder is not None
    store.folder.chmod(mode)  # in which anybody could have renamed b's code
    assert store.read("a") is None
    assert not store.write("b", b"b")
    (kernel,) = made_of("a")
    build([kernel], store, compile_one, nothing)
    assert kernel.ready
    assert "another user can write it" in caplog.text
    store.folder.chmod(0o755)
    assert store.read("a") == b"b"


def test_a_folder_that_another_user_made_is_not_used(store: CodeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.write("a", b"a")
    assert store.folder is not None
    if os.geteuid() == 0:
        os.chown(store.folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert store.read("a") is None
    assert not store.write("b", b"b")


def test_the_folder_is_the_user_s_alone_to_write_whatever_the_umask(tmp_path: Path) -> None:
    store = CodeStore(tmp_path / "new" / "folder")
    before = os.umask(0)
    try:
        assert store.write("a", b"a")
    finally:
        os.umask(before)
    assert store.read("a") == b"a"


def test_code_that_is_whole_and_cannot_be_loaded_is_compiled_again(
    store: CodeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write("a", b"of another time")
    kernels = made_of("a")
    load_kept(kernels, store)
    assert not kernels[0].ready
    assert "the code of a cannot be used: UnpicklingError: that is no code" in caplog.text
    build(kernels, store, compile_one, nothing)
    assert kernels[0].ready
    assert store.read("a") == b"a"


@pytest.fixture(params=["a file", "full", "none"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path) -> CodeStore:
    """Where nothing can be kept, root or not."""
    if request.param == "a file":
        (tmp_path / "file").write_text("")
        return CodeStore(tmp_path / "file" / "kept")
    if request.param == "full":
        return CodeStore(Path("/proc/self/kept"))
    store = CodeStore()
    store.folder = None
    return store


def test_without_a_place_it_is_compiled_all_the_same(nowhere: CodeStore) -> None:
    kernels = made_of("a", "b")
    build(kernels, nowhere, compile_one, nothing)
    assert all(kernel.ready for kernel in kernels)
    assert nowhere.read("a") is None


@pytest.mark.parametrize("home", [None, "file/none/such", "/proc/1"])
def test_nobody_needs_a_home(home: str | None, tmp_path: Path) -> None:
    """A user has no passwd entry, and either no home or one that nobody can write to, not even root."""
    (tmp_path / "file").write_text("")
    variables = {} if home is None else {"HOME": str(tmp_path / home)}
    script = """
import os, pwd
def no_entry(uid): raise KeyError(uid)
pwd.getpwuid = no_entry
from lossd.compiled.passes import Passes, CompileProgress
from lossd.compiled.store import CodeStore
from lossd.compiled.work import Work
store = CodeStore()
assert store.read("a") is None
print(store, store.write("a", b"a"))
with store.reserved() as mine:
    assert mine
"""
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")} | variables
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if not variables:
        assert run.stdout.split() == ["nowhere", "False"]


def test_only_kernels_become_machine_code() -> None:
    @jit
    def inner(x: float) -> float:
        return x + 1.0

    @njit(**KERNEL)
    def kernel(x: float) -> float:
        return 2.0 * inner(x)

    kernel.compile("float64(float64)")
    (overload,) = inner.overloads.values()  # type: ignore[attr-defined]
    assert kernel(1.0) == 4.0
    assert overload.library.get_pointer_to_function(overload.fndesc.llvm_func_name) == 0
    assert "fadd" in overload.library.get_llvm_str()


def test_other_code_and_other_options_lie_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import llvmlite.binding as llvm

    monkeypatch.setenv("LOSSD_CACHE_DIR", str(tmp_path))
    folders = {CodeStore().folder}
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    folders.add(CodeStore().folder)
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "i486")
    folders.add(CodeStore().folder)
    assert len(folders) == 3
    assert {folder.parent for folder in folders if folder is not None} == {tmp_path}


def test_a_recipe_gets_its_pass_when_its_kernels_are_ready(new_passes: Passes) -> None:
    by_name = {kernel.name: kernel for kernel in compile_order.KERNELS}
    new_passes._look_up = recipes.look_up
    ours, other = recipe("cross_entropy"), recipe("mse", target="float32")
    assert new_passes.find(ours) is None
    assert new_passes.find(ours) is None
    assert new_passes.find(other) is None
    assert {name: kernel.demand for name, kernel in by_name.items() if kernel.demand} == {
        ROWS: 2,
        "elements": 1,
    }
    by_name[ROWS].ready = True
    assert new_passes.find(ours) is not None
    assert new_passes.find(recipe("cross_entropy", "float64")) is not None, "one kernel takes both dtypes"
    assert new_passes.find(other) is None


def test_smoothed_rows_wait_for_their_kernel_and_others_do_not(new_passes: Passes) -> None:
    by_name = {kernel.name: kernel for kernel in compile_order.KERNELS}
    new_passes._look_up = recipes.look_up
    by_name[ROWS].ready = True
    found = new_passes.find(recipe("cross_entropy"))
    assert found is not None
    inputs = {"prediction": np.zeros((2, 3), np.float32), "target": np.zeros(2, np.int64)}
    assert found(Work([1, 1], {"label_smoothing": [0.0, 0.1]}, inputs, {})) is None
    assert {name for name, kernel in by_name.items() if kernel.demand} == {"single_rows"}


def test_without_numba_everything_goes_the_general_way(
    new_passes: Passes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> CodeStore:
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(new_passes, "_open", fail)
    new_passes.prepare()
    assert new_passes.find(recipe("focal")) is None
    assert "Numba needs NumPy 2.3 or less; every request goes the general way" in caplog.text


def test_a_compiler_that_dies_is_no_reason_to_end(
    new_passes: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LOSSD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(Compiler, "COMMAND", (sys.executable, "-c", "import sys; input(); sys.exit(3)"))
    kernels = compile_order.KERNELS[:2]
    monkeypatch.setattr(compile_order, "KERNELS", kernels)
    progress: list[CompileProgress] = []
    new_passes.prepare(progress.append)
    finished()
    assert progress[-1] == (0, 2, 2)
    assert caplog.text.count("the compiler ended with status 3") == 2
    for kernel in kernels:
        kernel.failed = False


def finished() -> None:
    for thread in threading.enumerate():
        if thread.name == "lossd-compile":
            thread.join(timeout=120)
            assert not thread.is_alive()


@pytest.fixture
def compiler() -> Iterator[Compiler]:
    compiler = Compiler()
    yield compiler
    compiler.close()


def test_a_second_process_compiles_kernels_for_this_one(
    new_passes: Passes, tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, for the one that takes least time."""
    kernel = min(compile_order.KERNELS, key=lambda kernel: kernel.name != "weigh")
    assert kernel.name == "weigh"
    code = compiler(kernel)
    process = compiler._process
    assert process is not None
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    fresh = """
import sys
import numpy as np
from lossd.compiled import compile_order, dense
from lossd.compiled.passes import Passes, CompileProgress
from lossd.compiled.store import CodeStore
from lossd.compiled.work import Work
(kernel,) = (kernel for kernel in compile_order.KERNELS if kernel.name == "weigh")
kernel.load(CodeStore(__import__("pathlib").Path(sys.argv[1])).read("weigh"))
columns, doubtful = np.zeros((5, 1)), np.zeros(1, bool)
dense.weigh(np.array([[0, 2]]), np.array([0, 1]), np.array([1.0, 1.0, 4.0]), -1, columns, doubtful)
assert columns[2:4, 0].tolist() == [5.0, 2.0]
"""
    store = CodeStore(tmp_path)
    assert store.write("weigh", code)
    run = subprocess.run([sys.executable, "-c", fresh, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=30) == 0, "it ends when its input ends"


COMPILE_ONE = """
import sys
from lossd.compiled import compile_order
from lossd.compiled.kernels import aot, kernel_of

@aot("float64(float64)")
def doubled(x):
    return 2 * x

compile_order.KERNELS = [kernel_of(doubled)]
from lossd.cli import main
main(["compile", "--cache-dir", sys.argv[1]])
"""


def lossd_compile(folder: Path) -> subprocess.CompletedProcess[str]:
    """``lossd compile`` of one kernel."""
    command = [sys.executable, "-c", COMPILE_ONE, str(folder)]
    environment = os.environ | {"LOSSD_CACHE_DIR": "/elsewhere"}
    return worker_process.subprocess.run(command, capture_output=True, text=True, env=environment, timeout=110)


def test_lossd_compile_says_what_it_does_and_where_the_code_lies(tmp_path: Path) -> None:
    run = lossd_compile(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert run.returncode == 0, run.stderr
    begun, done, ended, where = run.stderr.splitlines()
    assert begun == f"compiling 1 of 1 passes; their code is kept in {folder}"
    assert done.startswith("compiled doubled in ")
    assert done.endswith(" s: 1 of 1")
    assert ended.startswith("1 of 1 passes are ready after ")
    assert where == f"the code of 1 of 1 passes lies in {folder}"
    again = lossd_compile(tmp_path)
    assert (again.returncode, again.stderr.splitlines()) == (0, [where]), "it is not compiled again"


def test_lossd_compile_that_can_keep_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = lossd_compile(tmp_path / "file" / "kept")
    assert run.returncode == 1
    assert "the code of 0 of 1 passes lies in" in run.stderr
