"""Workers and services that are forked from a process that has imported torch.

They start in milliseconds instead of seconds.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

__all__ = ["WarmProcess"]

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
MOST_BYTES, MOST_FILES = 1 << 20, 8


class WarmProcess:
    """Stands in for the module ``subprocess`` in ``lossd.engine.worker_process``.

    The warm process starts with the first worker. It forks for each worker, and makes the child one of this process,
    which waits for it as for any child. The workers of a ``lossd serve`` start as always.
    """

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def Popen(  # noqa: N802  (as in subprocess)
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        env: Mapping[str, str],
        stdout: int | None = None,
        stderr: int | None = None,
        **options: Any,
    ) -> Any:
        """Fork a process, as its command says; another program than Python is started as always."""
        if command[0] != sys.executable:
            return subprocess.Popen(command, pass_fds=pass_fds, env=env, stdout=stdout, stderr=stderr, **options)
        pipes = {number: os.pipe() for number, to in ((1, stdout), (2, stderr)) if to == subprocess.PIPE}
        numbers = [1, 2, *pass_fds]
        files = [pipes[number][1] if number in pipes else number for number in numbers]
        request = {"command": command[1:], "environment": dict(env), "directory": os.getcwd(), "files": numbers}
        with self._lock:
            connection = self._connection or self._start()
            prctl = ctypes.CDLL(None).prctl
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a child whose parent ends becomes this process's
            try:
                socket.send_fds(connection, [json.dumps(request).encode()], files)
                return Forked(
                    int(connection.recv(64)), {number: os.fdopen(ours) for number, (ours, _) in pipes.items()}
                )
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
                for _, theirs in pipes.values():
                    os.close(theirs)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True,
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


class Forked:
    """A process that was forked for this one: as much of ``subprocess.Popen`` as workers and services need."""

    def __init__(self, pid: int, streams: Mapping[int, IO[str]]) -> None:
        self.pid = pid
        self.stdout, self.stderr = streams.get(1), streams.get(2)
        self._status: int | None = None
        self._file = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; a negative one is the number of the signal that ended the process."""
        if self._status is None:
            poll = select.poll()
            poll.register(self._file, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("a forked worker", timeout or 0.0)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._file)
        return self._status

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        if self._status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        self.send_signal(signal.SIGKILL)


def serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request. Return the command in each child, and None when the connection has closed."""
    while True:
        text, files, _, _ = socket.recv_fds(connection, MOST_BYTES, MOST_FILES)
        if not text:
            return None
        if "lossd.cli" in json.loads(text)["command"]:
            importlib.import_module("lossd.api.server")
            gc.freeze()
        told, telling = os.pipe()
        if not (between := os.fork()):
            between = os.getpid()
            if not (child := os.fork()):
                connection.close()
                while os.getppid() == between:  # a worker asks to be killed when its parent ends
                    time.sleep(0.001)
                return become(json.loads(text), files)
            os.write(telling, str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)  # only now is the child that of the process which asked
        connection.send(os.read(told, 64))
        for file in (told, telling, *files):
            os.close(file)


def become(request: Mapping[str, Any], files: Sequence[int]) -> list[str]:
    """Take the session, files, directory and variables of a process that is new. Return its command."""
    os.setsid()
    for position, file in enumerate(files):
        os.dup2(file, 1000 + position)  # out of the way of the numbers that they get
    os.closerange(3, 1000)
    for position, number in enumerate(request["files"]):
        os.dup2(1000 + position, number)
        os.close(1000 + position)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    return list(request["command"])


def run(command: Sequence[str]) -> None:
    """Do what Python does with these arguments."""
    match [argument for argument in command if argument != "-P"]:
        case ["-m", "lossd.engine.worker", *arguments]:
            sys.argv[1:] = arguments
            worker.main()
        case ["-m", "lossd.cli", *arguments]:
            cli.main(arguments, prog_name="lossd")
        case ["-c", code, *arguments]:
            sys.argv[1:] = arguments
            exec(code, {"__name__": "__main__"})
        case [path, *arguments]:
            sys.argv[1:] = arguments
            runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    from lossd import cli
    from lossd.compiled import recipes  # noqa: F401  (it brings Numba)
    from lossd.engine import worker

    gc.freeze()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        run(command)
