"""Services that share one PostgreSQL, each as if on a machine of its own, and the ways in which they fail."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from chaos.scoring import Kill, kill_process, processes_of
from chaos.service import Service, processes, served
from postgres import PostgreSQL

DOWN_S = 0.5
"""How long PostgreSQL is down after a crash, at least."""

STOPPED_S = 6.0
"""How long a recorder stands still: longer than another one waits for a run."""


class Replica(Service):
    """A service that comes back at its address after it was killed.

    Args:
        settings: Of the service.
    """

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._settings = settings
        self._port = free_port()
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        """Start the service, and return when it is ready."""
        service = self._stack.enter_context(served(port=self._port, **self._settings))
        super().__init__(service.process, service.url)

    def kill(self) -> None:
        """Kill all its processes at once, as a machine that loses its power."""
        for pid in processes(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """End the service."""
        self._stack.close()


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def fleet(count: int, **settings: object) -> Iterator[Sequence[Replica]]:
    """Serve with so many services until the block ends."""
    with ThreadPoolExecutor(count) as pool:
        replicas = list(pool.map(Replica, [settings] * count))
    try:
        yield replicas
    finally:
        for replica in replicas:
            replica.close()


def ways_to_die(replicas: Sequence[Replica], server: PostgreSQL) -> Mapping[str, Kill]:
    """Return the ways in which a fleet fails, by name: one process, a whole service, a recorder that stops, PostgreSQL.

    What failed is back before anything else fails.
    """

    def replica(chance: random.Random) -> bool:
        victim = chance.choice(replicas)
        victim.kill()
        victim.start()
        return True

    def database(_chance: random.Random) -> bool:
        server.stop(signal.SIGQUIT)
        time.sleep(DOWN_S)
        server.start()
        return True

    def stopped(chance: random.Random) -> bool:
        pids = [pid for each in replicas for pid in processes_of(each)["recorder"]]
        if not pids:
            return False
        victim = chance.choice(pids)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(victim, signal.SIGCONT)
        return True

    processes_alone = {kind: partial(kill_process, replicas, kind) for kind in ("recorder", "worker")}
    return {"replica": replica, "database": database, "stopped": stopped, **processes_alone}
