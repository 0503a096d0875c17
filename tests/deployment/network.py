"""A machine of its own for a process: a network namespace, a link to this one, and what cuts it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

# Python runs it at the start of a process, and ``warm`` in a process that it forks. 0x40000000 is CLONE_NEWNET.
ENTER = """
import ctypes, os
with open({namespace!r}) as namespace:
    assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000) == 0, os.strerror(ctypes.get_errno())
"""


def run(*command: str) -> None:
    """Run a command to its end, and raise with what it printed if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@cache
def missing() -> str:
    """Return why this machine can make no network namespaces, or nothing."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    link = f"lossd{os.getpid()}"
    made = subprocess.run(["unshare", "--net", "ip", "link", "add", link, "type", "veth"], capture_output=True)
    return "" if made.returncode == 0 else "network namespaces need root"


def nothing_is_sent_to(ports: Sequence[int]) -> bool:
    """Return whether all that was sent to these ports over IPv4 is acknowledged, and read if the receiver is here."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        unacknowledged, unread = (int(bytes_, 16) for bytes_ in queues.split(":"))
        if (port_of(remote) in ports and unacknowledged) or (port_of(local) in ports and unread):
            return False
    return True


def port_of(address: str) -> int:
    """Return the port of an address as ``/proc/net/tcp`` has it."""
    return int(address.rpartition(":")[2], 16)


class Machine:
    """A network namespace, in which one address answers.

    Packets to it vanish after :meth:`cut`, as those to a machine without power do: nothing says that they did.
    """

    def __init__(self, number: int) -> None:
        # 198.18.0.0/15 is for tests of networks, RFC 2544; each process of tests takes other parts of it.
        net = f"198.18.{os.getpid() % 256}.{4 * number}"
        prefix, last = net.rpartition(".")[0], 4 * number
        self.address = f"{prefix}.{last + 2}"
        self._link = f"lossd{os.getpid() % 100000}n{number}"
        # It ends when this process does, because its input then ends.
        self._holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        namespace = f"/proc/{self._holder.pid}/ns/net"
        while os.readlink(namespace) == os.readlink("/proc/self/ns/net"):
            assert self._holder.poll() is None
        self._namespace = namespace
        self._enter = ("nsenter", f"--net={namespace}")
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(self._holder.pid))
        run("ip", "address", "add", f"{prefix}.{last + 1}/30", "dev", self._link)
        run("ip", "link", "set", self._link, "up")
        run(*self._enter, "ip", "address", "add", f"{self.address}/30", "dev", "eth0")
        run(*self._enter, "ip", "link", "set", "eth0", "up")
        run(*self._enter, "ip", "link", "set", "lo", "up")

    def cut(self) -> None:
        """Let all packets vanish, in both directions."""
        run(*self._enter, "ip", "link", "set", "eth0", "down")

    def python_path(self, folder: Path) -> str:
        """Return the PYTHONPATH with which Python runs in the namespace; a file of it is written to the folder."""
        (folder / "sitecustomize.py").write_text(ENTER.format(namespace=self._namespace))
        return f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"

    def close(self) -> None:
        """Remove the link, which would outlive the namespace for a moment, and end the namespace."""
        run("ip", "link", "delete", self._link)
        self._holder.communicate()
