"""What a process is given that is forked from a warm one."""

from __future__ import annotations

import fcntl
import os
import sys

from lossd.engine import worker_process

WRITE = "import os, sys; [os.write(int(number), number.encode()) for number in sys.argv[1:]]"


def test_a_forked_process_has_its_files_whatever_their_numbers() -> None:
    """A process of tests opens more than a thousand files in its life."""
    pipes = [os.pipe() for _ in range(5)]
    numbers = [fcntl.fcntl(writer, fcntl.F_DUPFD, 1004) for _, writer in pipes]
    process = worker_process.subprocess.Popen([sys.executable, "-c", WRITE, *map(str, numbers)], pass_fds=numbers)
    assert process.wait(60) == 0
    for (reader, writer), number in zip(pipes, numbers, strict=True):
        os.close(writer)
        os.close(number)
        assert os.read(reader, 100) == str(number).encode()
        os.close(reader)
