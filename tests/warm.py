"""Processes of lossd that are forked from a process that has imported what they need.

They start in milliseconds instead of seconds. So do the processes that run tests, which are forked by ``forking``.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["WarmProcess"]

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
MOST_BYTES, MOST_FILES = 1 << 20, 16
ARGUMENT_START, ARGUMENT_END = 45, 46  # the fields of /proc/self/stat after the name, counted from 0
LONGEST_COMMAND = 2000
FOLDERS = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # of the warm process
CACHES = ("LOSSD_CACHE_DIR", "XDG_CACHE_HOME", "HOME")  # the variables that say where the passes' code is kept
OWN_CACHES = [os.environ.get(name) for name in CACHES]
TESTS = "import sys;exec(eval(sys.stdin.readline()))"  # what pytest-xdist lets Python do in a process that runs tests

# What `python -m MODULE` calls, and what it imports only then.
MAINS = {
    "lossd.engine.worker": ("lossd.engine.worker", "lossd.compiled.recipes"),
    "lossd.recorder": ("lossd.recorder.__main__", "lossd.recorder.store"),
    "lossd.pictures.plots": ("lossd.pictures.plots", "matplotlib.backends.backend_svg"),
    "lossd.cli": ("lossd.cli", "lossd.api.server", "uvicorn.loops.uvloop", "uvicorn.lifespan.on"),
}


class WarmProcess:
    """Stands in for the module ``subprocess`` where lossd, or a test, starts processes of lossd.

    The warm process starts with the first of them. It forks for each, and makes the child one of this process, which
    waits for it as for any child. Such a service has a warm process of its own for its workers, fronts and recorder.

    Args:
        connection: The connection to a warm process that runs already.
    """

    def __init__(self, connection: socket.socket | None = None) -> None:
        self._lock = threading.Lock()
        self._connection = connection
        self._process: subprocess.Popen[bytes] | None = None

    def import_before(self, modules: Sequence[str]) -> None:
        """Start the warm process, which imports modules before it forks; one that cannot be imported is left out.

        What it forks then runs tests, and has a warm process of its own.
        """
        request = {"path": sys.path, "modules": list(modules)}
        self._connection = self._start()
        self._connection.send(json.dumps(request).encode())

    def __getattr__(self, name: str) -> Any:
        """Return what the module has besides."""
        return getattr(subprocess, name)

    def Popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:  # noqa: N802  (as in subprocess)
        """Fork a process as its command says. A program that the warm process does not know starts as always."""
        environment = options.get("env") or os.environ
        # The passes are loaded once for all, and cannot be unloaded for a worker that keeps them elsewhere.
        elsewhere = "--compiled" in command and [environment.get(name) for name in CACHES] != OWN_CACHES
        if command[0] != sys.executable or elsewhere or _unknown(command[1:]):
            return subprocess.Popen(command, **options)
        return _Forked(self, command, **options)

    def run(
        self, command: Sequence[str], *, capture_output: bool, timeout: float, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command to its end."""
        text = options.pop("input", None)
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE if capture_output else None)
        stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
        with self.Popen(command, stdin=stdin, **pipes, **options) as process:
            try:
                output, errors = process.communicate(text, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def fork(self, request: dict[str, Any], files: Sequence[int]) -> int:
        """Return the process id of a new child of this process, which runs a command."""
        with self._lock:
            connection = self._connection or self._start()
            prctl = ctypes.CDLL(None).prctl
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a child whose parent ends becomes this process's
            try:
                socket.send_fds(connection, [json.dumps(request).encode()], files)
                return int(connection.recv(64))
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno()), " " * LONGEST_COMMAND],
            pass_fds=[theirs.fileno()], start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._connection = ours
        return ours

    def close(self) -> None:
        """End the warm process."""
        if self._connection is not None and self._process is not None:
            self._connection.close()
            self._process.wait()


class _Forked(subprocess.Popen[Any]):
    """A child that was forked by a warm process; all but its start is that of any child."""

    def __init__(self, warm: WarmProcess, command: Sequence[str], **options: Any) -> None:
        self._warm = warm
        super().__init__(command, **options)

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Wait for the child's end. If the block has failed, kill the child: nothing else may end it."""
        if kind is not None:
            self.kill()
        super().__exit__(kind, *error)

    def _execute_child(self, *arguments: Any) -> None:
        """Start the child, as the constructor asks for with its files as numbers, -1 where it inherits them."""
        options = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments  # type: ignore[attr-defined]
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        ends = {0: options["p2cread"], 1: options["c2pwrite"], 2: options["errwrite"]}
        files = {number: number if end == -1 else end for number, end in ends.items()}
        files |= {number: number for number in options["pass_fds"]}
        request = {
            "command": options["args"][1:],
            "environment": dict(os.environ if options["env"] is None else options["env"]),
            "directory": os.fspath(options["cwd"] or os.getcwd()),
            "mask": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "files": list(files),
        }
        try:
            self.pid = self._warm.fork(request, list(files.values()))
            self._child_created = True
        finally:
            self._close_pipe_fds(*(options[name] for name in pipes))  # type: ignore[attr-defined]


def _unknown(command: Sequence[str]) -> bool:
    options = [argument for argument in command if argument != "-P"]
    return options[0] == "-m" and options[1] not in MAINS


def serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request. Return the command in each child, and None when the connection has closed."""
    while True:
        text, files, _, _ = socket.recv_fds(connection, MOST_BYTES, MOST_FILES)
        if not text:
            return None
        request = json.loads(text)
        if "modules" in request:
            sys.path[:] = request["path"]
            import_all(request["modules"])
            continue
        for module in next((MAINS[word] for word in request["command"] if word in MAINS), ()):
            if module not in sys.modules:
                importlib.import_module(module)
                keep_imports()
        if "--compiled" in request["command"] and pending(KERNELS):
            load_kept(KERNELS, CodeStore())  # it takes a second
            keep_imports()
        read_end, write_end = os.pipe()
        if not (between := os.fork()):
            between = os.getpid()
            if not (child := os.fork()):
                connection.close()
                while os.getppid() == between:  # a worker asks to be killed when its parent ends
                    time.sleep(0.001)
                return become(request, files)
            os.write(write_end, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)  # only now is the child that of the process which asked
        connection.send(os.read(read_end, 64))
        for file in (read_end, write_end, *files):
            os.close(file)


def import_all(modules: Sequence[str]) -> None:
    """Import modules. Whoever needs one that warns or fails imports it again, and sees why."""
    from _pytest.outcomes import Skipped  # only a process that runs tests needs pytest

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in modules:
            with suppress(Exception, Skipped):
                importlib.import_module(module)
    load_kept(KERNELS, CodeStore())
    keep_imports()


def keep_imports() -> None:
    """Keep what is imported from the garbage collector of each process that is forked later, and from its finalizers.

    Each page that they touch would be copied. Those of torch unregister thousands of operators.
    """
    gc.freeze()
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def become(request: dict[str, Any], files: Sequence[int]) -> list[str]:
    """Take the session, files, directory, variables and command line of a process that is new. Return its command."""
    os.setsid()
    beyond = max(1000, *files, *request["files"]) + 1  # the numbers that they get may be taken by one that waits
    for position, file in enumerate(files):
        os.dup2(file, beyond + position)
    os.closerange(3, beyond)
    for position, number in enumerate(request["files"]):
        os.dup2(beyond + position, number)
        os.close(beyond + position)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests that run in the background inherit that it is ignored
    signal.pthread_sigmask(signal.SIG_SETMASK, request["mask"])
    if "lossd.recorder.faults" in sys.modules:  # it reads the variables when it is imported
        importlib.reload(sys.modules["lossd.recorder.faults"])
    command = list(request["command"])
    sys.orig_argv[:] = [sys.executable, *command]
    show(sys.orig_argv)
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if folder not in FOLDERS and (site := Path(folder, "sitecustomize.py")).exists():
            runpy.run_path(str(site))
    return command


def show(command: Sequence[str]) -> None:
    """Show a command line in ``/proc``, where the one of the warm process stands."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[ARGUMENT_START]), int(fields[ARGUMENT_END])
    text = "\0".join(command).encode()[: end - start - 1]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def keep_warm(command: Sequence[str], starters: Sequence[ModuleType]) -> list[str] | None:
    """Give a command a warm process for what it starts. Return the command in its process and in each of those."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        warm = WarmProcess(ours)
        for module in starters:
            module.subprocess = warm  # type: ignore[attr-defined]
        return list(command)
    ours.close()
    for number in (1, 2):  # who reads them waits for their end
        os.dup2(0, number)
    show([sys.executable, __file__])
    return serve(theirs)


def run(command: Sequence[str]) -> None:
    """Do what Python does with these arguments."""
    match [argument for argument in command if argument not in ("-P", "-u")]:
        case ["-m", "lossd.cli", *arguments]:
            cli.main(arguments, prog_name="lossd")
        case ["-m", module, *arguments]:
            sys.argv[1:] = arguments
            main: Callable[[], None] = importlib.import_module(MAINS[module][0]).main
            main()
        case ["-c", code, *arguments]:
            sys.argv[1:] = arguments
            exec(code, {"__name__": "__main__"})
        case [path, *arguments]:
            sys.argv[1:] = arguments
            runpy.run_path(path, run_name="__main__")


def run_and_end(command: Sequence[str]) -> None:
    """Run a command, and end as Python does, but for taking its modules apart: torch's take a second."""
    try:
        run(command)
        status = 0
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        status = error.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    from lossd import cli
    from lossd.api import create_app, drawing
    from lossd.compiled.building import load_kept, pending
    from lossd.compiled.compile_order import KERNELS
    from lossd.compiled.store import CodeStore
    from lossd.configuration.settings import Settings
    from lossd.engine import worker, worker_process  # noqa: F401
    from lossd.fronts import FrontConfig, parent
    from lossd.recorder import keeper

    create_app(Settings(engine="inline"))  # what is imported or made with the first one is there for all
    keep_imports()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    while command is not None and (TESTS in command or ("lossd.cli" in command and not FrontConfig.in_environment())):
        pid = os.getpid()
        command = keep_warm(command, (worker_process, parent, keeper, drawing))
        if os.getpid() == pid:
            break
    if command is None:
        os._exit(0)  # as at the end of a command: taking torch apart would take a second
    run_and_end(command)
