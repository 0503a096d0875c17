"""Workers that are forked from a process that has imported torch: they start in milliseconds instead of seconds."""

from __future__ import annotations

import ctypes
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
from typing import Any

__all__ = ["WarmProcess"]

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
MOST_BYTES, MOST_FILES = 1 << 20, 8


class WarmProcess:
    """Stands in for the module ``subprocess`` in ``lossd.engine.worker_process``.

    The warm process starts with the first worker. It forks for each worker, and makes the child one of this process,
    which waits for it as for any child. Workers of ``lossd serve`` are not its matter: they start as always.
    """

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def Popen(  # noqa: N802  (as in subprocess)
        self, command: Sequence[str], *, pass_fds: Sequence[int], env: Mapping[str, str], **options: Any
    ) -> Forked | subprocess.Popen[bytes]:
        """Fork a worker, as its command says; another program than Python is started as always."""
        if command[0] != sys.executable:
            return subprocess.Popen(command, pass_fds=pass_fds, env=env, **options)
        files = [1, 2, *pass_fds]
        request = {"command": command[1:], "environment": dict(env), "directory": os.getcwd(), "files": files}
        with self._lock:
            connection = self._connection or self._start()
            prctl = ctypes.CDLL(None).prctl
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # a child whose parent ends becomes this process's
            try:
                socket.send_fds(connection, [json.dumps(request).encode()], files)
                return Forked(int(connection.recv(64)))
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

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
    """A process that was forked for this one: as much of ``subprocess.Popen`` as a worker's needs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
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

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)


def serve(connection: socket.socket) -> list[str] | None:
    """Fork for each request. Return the command in each child, and None when the connection has closed."""
    while True:
        text, files, _, _ = socket.recv_fds(connection, MOST_BYTES, MOST_FILES)
        if not text:
            return None
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
        case ["-c", code, *arguments]:
            sys.argv[1:] = arguments
            exec(code, {"__name__": "__main__"})
        case [path, *arguments]:
            sys.argv[1:] = arguments
            runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    import gc

    from lossd.compiled import recipes  # noqa: F401  (it brings Numba)
    from lossd.engine import worker

    gc.freeze()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command is not None:
        run(command)
