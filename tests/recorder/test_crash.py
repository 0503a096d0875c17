"""Kill -9 at every point of the recorder: each batch is counted once, and every answer is true."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from lossd.recorder import faults
from lossd.recorder.folding import PENDING
from lossd_client.errors import UnknownRun
from postgres import PostgreSQL
from recorder.harness import ROWS, count, counted, create, merged, one_will_die, recording, soon, until

WAITING = 64


def rows_of(folder: Path) -> dict[str, int]:
    """How many rows each table of runs has."""
    with sqlite3.connect(folder / "runs.db") as database:
        return {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("runs", "batches", "states")
        }


def pending(folder: Path) -> int:
    """How many batches no fold covers."""
    with sqlite3.connect(folder / "runs.db") as database:
        return int(database.execute("SELECT sum(pending) FROM runs").fetchone()[0])


async def die_and_count(folder: Path, url: str, point: str, occurrence: int) -> None:
    """Count many batches that wait, while a recorder dies at a point; check the answers and what was counted."""
    alone = occurrence == 2  # a transaction of its own, which the first occurrence is in
    batches = WAITING + alone
    async with recording(folder, runs=url) as (recorder, keeper):
        await one_will_die(recorder, keeper, point, occurrence)
        victim = keeper.pid
        run = await create(recorder)
        if alone:
            await count(recorder, run, WAITING)
        outcomes = await asyncio.gather(*(count(recorder, run, number) for number in range(WAITING)))
        assert keeper.restarts == 1
        assert keeper.pid != victim
        assert {outcome["batch"] for outcome in outcomes} == {f"{number}" for number in range(WAITING)}
        assert all(outcome["counted"] == {"rows": ROWS, "entries": ROWS} for outcome in outcomes)
        counts = sorted(outcome["run"]["batches"] for outcome in outcomes)
        assert counts == list(range(1 + alone, batches + 1)), "each said how many were counted by then"
        assert sorted(await counted(recorder, run)) == sorted(f"{number}" for number in range(batches))
        record, state = await recorder.ask("merged", soon(), run=run)
        assert (record["rows"], record["batches"]) == (ROWS * batches, batches)
        assert state == merged(batches), "the sum of what was answered, to the last bit"


@pytest.mark.parametrize(
    ("point", "occurrence"),
    [
        (faults.RECEIVED, 1),
        (faults.RECEIVED, WAITING // 2),
        (faults.RECEIVED, WAITING),
        (faults.WAITING, 1),
        (faults.WAITING, 2),
        (faults.WRITTEN, 1),
        (faults.WRITTEN, 2),
        (faults.COMMITTED, 1),
        (faults.COMMITTED, 2),
    ],
)
def test_each_of_many_batches_is_counted_once(tmp_path: Path, point: str, occurrence: int) -> None:
    """Sixty-four batches wait."""
    asyncio.run(die_and_count(tmp_path, str(tmp_path / "runs.db"), point, occurrence))
    assert rows_of(tmp_path)["batches"] == WAITING + (occurrence == 2)


@pytest.mark.parametrize("point", [faults.WRITTEN, faults.COMMITTED])
def test_each_is_counted_once_in_postgresql(tmp_path: Path, postgresql: PostgreSQL, point: str) -> None:
    """The server rolls back what the dead recorder had written, and keeps what it had committed."""
    asyncio.run(die_and_count(tmp_path, postgresql.new_schema(), point, 2))


def test_a_batch_whose_answer_was_lost_was_counted(tmp_path: Path) -> None:
    """Committed and not answered: the second time, the answer is the first one, and says that it is."""

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            await one_will_die(recorder, keeper, faults.COMMITTED)
            run = await create(recorder)
            assert await count(recorder, run, 0) == {
                "batch": "0", "created": False, "counted": {"rows": ROWS, "entries": ROWS},
                "run": {"rows": ROWS, "batches": 1},
            }  # fmt: skip
            assert keeper.restarts == 1

    asyncio.run(run())


def test_a_batch_that_was_not_committed_was_not_counted(tmp_path: Path) -> None:
    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            await one_will_die(recorder, keeper, faults.WRITTEN)
            run = await create(recorder)
            assert (await count(recorder, run, 0))["created"]
            assert keeper.restarts == 1

    asyncio.run(run())


def test_killed_while_folding(tmp_path: Path) -> None:
    """States are folded, or are as they were: their sum is the same before and after."""
    many = PENDING + 3

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            await one_will_die(recorder, keeper, faults.FOLDING)
            run = await create(recorder)
            await asyncio.gather(*(count(recorder, run, number) for number in range(many)))
            await until(lambda: keeper.restarts == 1)
            _, state = await recorder.ask("merged", soon(), run=run)
            assert state == merged(many)
            await until(lambda: pending(tmp_path) < PENDING)  # the next recorder folds
            await count(recorder, run, many)
            record, state = await recorder.ask("merged", soon(), run=run)
            assert record["batches"] == many + 1
            assert state == merged(many + 1)
            assert keeper.restarts == 1

    asyncio.run(run())


def test_killed_while_sealing(tmp_path: Path) -> None:
    """The run is open until the commit, and the client that asks again gets the sealed record."""

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            await one_will_die(recorder, keeper, faults.SEALING)
            run = await create(recorder)
            await asyncio.gather(*(count(recorder, run, number) for number in range(3)))
            record, _ = await recorder.ask("merged", soon(), run=run)
            result, summary = {"metrics": {"accuracy": 0.5}}, {"accuracy": 0.5}
            sealed, _ = await recorder.ask(
                "seal", soon(), run=run, revision=record["revision"], rows=3 * ROWS, result=result, summary=summary
            )
            assert keeper.restarts == 1
            assert (sealed["status"], sealed["rows"]) == ("sealed", 3 * ROWS)
            _, state = await recorder.ask("merged", soon(), run=run)
            assert state == merged(3)

    asyncio.run(run())


def test_killed_while_deleting(tmp_path: Path) -> None:
    """A deleted run is gone at once, and the next recorder removes what is left of it."""

    async def run() -> None:
        async with recording(tmp_path) as (recorder, keeper):
            await one_will_die(recorder, keeper, faults.DELETING)
            run = await create(recorder)
            await asyncio.gather(*(count(recorder, run, number) for number in range(9)))
            await recorder.ask("delete", soon(), owner="", name="a")
            await until(lambda: keeper.restarts == 1)
            with pytest.raises(UnknownRun):
                await recorder.ask("find", soon(), owner="", name="a")
            await until(lambda: not any(rows_of(tmp_path).values()))
            await create(recorder)  # the name is free

    asyncio.run(run())
