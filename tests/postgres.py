"""A PostgreSQL of the tests' own: a temporary folder, a Unix socket, no network, and ``fsync`` on."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

NOBODY = 65534  # PostgreSQL refuses to run as root
USER = "lossd"
SETTINGS = ("-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "max_connections=20", "-c", "jit=off")
START_S = 60.0


def programs() -> Path | None:
    """The folder of PostgreSQL's newest programs; None if they are not installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.parent.name)])
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


class PostgreSQL:
    """A running server.

    Attributes:
        folder: Where its socket is.
    """

    def __init__(self) -> None:
        bin_folder = programs()
        assert bin_folder is not None
        self._bin = bin_folder
        self.folder = Path(tempfile.mkdtemp(prefix="lossd-pg-", dir="/tmp"))  # a socket's path is short
        self._as: dict[str, Any] = {"cwd": self.folder, "stdin": subprocess.DEVNULL}
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
            self._as |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._numbers = itertools.count()
        command = [
            self._bin / "initdb",
            "-D",
            "data",
            "-U",
            USER,
            "-A",
            "trust",
            "--no-locale",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as)
        self.start()

    def start(self) -> None:
        """Start the server, and return when it answers."""
        command = [self._bin / "postgres", "-D", "data", "-k", self.folder, *SETTINGS]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **self._as)
        end = time.monotonic() + START_S
        while True:
            try:
                self.ask("SELECT 1")
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end, (self.folder / "log").read_text()
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its sessions, SIGQUIT is a crash from which it recovers."""
        self.process.send_signal(how)
        self.process.wait()

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows that a statement answers, run outside any transaction."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def url(self, schema: str = "public") -> str:
        """The URL of a schema."""
        return f"postgresql://{USER}@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"

    def new_schema(self) -> str:
        """The URL of a new, empty schema, which a store can take for a database."""
        schema = f"s{next(self._numbers)}"
        self.ask(f"CREATE SCHEMA {schema}")
        return self.url(schema)
