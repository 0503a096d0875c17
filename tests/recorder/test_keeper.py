"""The recorder's process: started when asked, restarted, ended with its keeper, and durable before it answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lossd.engine import worker_process
from lossd.recorder import keeper as keeping
from lossd.recorder.client import Recorder
from lossd_client.errors import DeadlineExceeded, Unavailable
from recorder.harness import count, counted, create, merged, recording, soon


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


IDLE = """
import asyncio, json, os, sys
from pathlib import Path
from lossd.api import create_app
from lossd.configuration.settings import Settings

async def main():
    app = create_app(Settings(engine="inline", compiled=False))
    async with app.router.lifespan_context(app):
        await asyncio.sleep(0.3)
        mine = f"@lossd-runs-{os.getpid()}-"
        tasks = Path("/proc/self/task").iterdir()
        children = [(task / "children").read_text().split() for task in tasks]
        loaded = list(sys.modules)  # a thread may import
        modules = [name for name in loaded if name.partition(".")[0] in ("sqlalchemy", "alembic", "psycopg")]
        modules += [name for name in loaded if name.startswith("lossd.recorder.")]
        print(json.dumps([sum(children, []), modules, mine in Path("/proc/net/unix").read_text()]))

asyncio.run(main())
"""


def test_a_service_that_sees_no_run_starts_no_process_and_imports_no_database(tmp_path: Path) -> None:
    """It holds one listening socket."""
    environment = {**os.environ, "LOSSD_RUNS": str(tmp_path / "runs.db")}
    ended = subprocess.run(
        [sys.executable, "-c", IDLE], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    children, modules, listens = json.loads(ended.stdout.splitlines()[-1])
    assert children == []
    assert {name.rpartition(".")[2] for name in modules} == {
        "client", "config", "keeper", "peer", "place", "protocol",
    }, "what a front needs to ask, and nothing that reads or writes a database"  # fmt: skip
    assert listens
    assert not list(tmp_path.iterdir())


def test_off_means_no_socket_either(tmp_path: Path) -> None:
    environment = {**os.environ, "LOSSD_RUNS": "off"}
    ended = worker_process.subprocess.run(
        [sys.executable, "-c", IDLE], env=environment, capture_output=True, text=True, timeout=120
    )
    children, _, listens = json.loads(ended.stdout.splitlines()[-1])
    assert (children, listens) == ([], False)


def test_the_first_question_starts_it_and_a_dead_one_is_started_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            await asyncio.sleep(0.1)
            assert keeper.pid is None
            run = await create(recorder)
            first = keeper.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            outcomes = await asyncio.gather(*(count(recorder, run, number) for number in range(8)))
            assert all(outcome["created"] for outcome in outcomes)
            assert keeper.restarts == 1
            assert keeper.pid not in (None, first)
            second = keeper.pid
        assert second is not None
        assert not alive(second)
        assert keeper.pid is None

    asyncio.run(run())


def test_the_end_lets_it_finish_and_close_the_database(tmp_path: Path) -> None:
    """Sixty-four batches are on their way when the service ends. It exits with 0, and no log of SQLite is left."""

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            run = await create(recorder)
            tasks = [asyncio.create_task(count(recorder, run, number)) for number in range(64)]
            await asyncio.sleep(0)
            process = keeper._process
            assert process is not None
            await keeper.stop()
            assert process.returncode == 0
            done = [task for task in tasks if task.done() and task.exception() is None]
            await recorder.close()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with recording(tmp_path) as (recorder, _):
            names = await counted(recorder, run)
            assert {task.result()["batch"] for task in done} <= set(names), "what was answered was counted"

    asyncio.run(run())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.db", "runs.db.lock"]


KEEPER = """
import asyncio, sys
sys.path.insert(0, "tests")
from pathlib import Path
from recorder.harness import create, recording

async def main():
    async with recording(Path(sys.argv[1])) as (recorder, keeper):
        await create(recorder)
        print(keeper.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_it_ends_with_a_keeper_that_dies(tmp_path: Path) -> None:
    """Else it would hold the lock of the database, and the next service could not count."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KEEPER, str(tmp_path)]
    with worker_process.subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
        process.wait(timeout=20)
        end = time.monotonic() + 20
        while alive(pid):
            assert time.monotonic() < end
            time.sleep(0.01)


def test_ctrl_c_at_a_terminal_does_not_reach_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            run = await create(recorder)
            assert keeper.pid is not None
            os.kill(keeper.pid, signal.SIGINT)
            assert os.getsid(keeper.pid) == keeper.pid, "a session of its own"
            await count(recorder, run, 0)
            assert keeper.restarts == 0

    asyncio.run(run())


def test_one_that_cannot_live_is_started_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0, 0, 0.2, 0.6 and 1.4 seconds, and so on up to 5 seconds apart."""
    monkeypatch.setattr(keeping, "COMMAND", (shutil.which("false"),))

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            with pytest.raises((Unavailable, DeadlineExceeded)):
                await recorder.ask("list", soon(1.2), owner="")
            assert 2 <= keeper.restarts <= 5

    asyncio.run(run())


def test_what_was_committed_outlives_every_process(tmp_path: Path) -> None:
    async def run(numbers: range) -> bytes:
        async with recording(tmp_path) as (recorder, _):
            run = await create(recorder)
            for number in numbers:
                await count(recorder, run, number)
            _, state = await recorder.ask("merged", soon(), run=run)
            return state

    asyncio.run(run(range(3)))
    assert asyncio.run(run(range(2, 6))) == merged(6), "the run is found again, and batch 2 is counted once"


def test_a_second_service_on_one_file_says_so(tmp_path: Path) -> None:
    """SQLite has one writer; the sentence names the process and the remedy. When the first ends, the second goes on."""

    async def run() -> None:
        async with recording(tmp_path) as (second, _):
            async with recording(tmp_path) as (first, keeper):
                await create(first)
                with pytest.raises(Unavailable, match=rf"another lossd \(process {keeper.pid}\).*postgresql://"):
                    await create(second)
            end = time.monotonic() + 20
            while True:
                try:
                    await create(second)
                    break
                except Unavailable:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.1)

    asyncio.run(run())


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_answer_is_sent_after_the_log_of_the_database_is_synced(tmp_path: Path) -> None:
    """The order of system calls: the batch is written into SQLite's log, the log is synced, then the answer is sent."""
    trace = tmp_path / "trace"

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            run = await create(recorder)
            command = [
                "strace",
                "-y",
                "-s",
                "200",
                "-e",
                "trace=pwrite64,fsync,fdatasync,sendmsg",
                "-o",
                str(trace),
            ]
            tracer = await asyncio.create_subprocess_exec(
                *command, "-p", f"{keeper.pid}", stderr=asyncio.subprocess.PIPE
            )
            assert tracer.stderr is not None
            line = await tracer.stderr.readline()
            if b"attached" not in line:
                pytest.skip(f"this machine traces no processes: {line.decode()}")
            for number in range(5):
                await count(recorder, run, number)
            tracer.terminate()
            await tracer.wait()

    asyncio.run(run())
    answers, written, synced = 0, False, False
    for line in trace.read_text().splitlines():
        if re.match(r"pwrite64\(\d+<\S+runs\.db-wal>", line):
            written, synced = True, False
        elif re.match(r"f(data)?sync\(\d+<\S+runs\.db-wal>\)\s+= 0", line):
            synced = True
        elif line.startswith("sendmsg(") and '\\"counted\\"' in line:
            assert written, "the batch is in the log"
            assert synced, "the log is on the disk"
            answers, written, synced = answers + 1, False, False
    assert answers == 5


def test_a_recorder_may_ask_before_there_is_a_keeper(tmp_path: Path) -> None:
    """A front may be faster than its parent; it waits until its deadline."""

    async def run() -> None:
        async with recording(tmp_path) as (_, keeper):
            await keeper.stop()
            recorder = Recorder(keeper.address, 1 << 20)
            task = asyncio.create_task(recorder.ask("list", soon(), owner=""))
            await asyncio.sleep(0.1)
            keeper.start()
            page, _ = await task
            assert page["runs"] == []
            await recorder.close()

    asyncio.run(run())
