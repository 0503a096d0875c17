"""A data set that is scored in thousands of batches, repeated, shuffled and disputed, while processes are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save

import lossd
from chaos.service import Service

METRICS = ["default", "auroc", "log_loss", "ece"]
MOST_ROWS = 16
LOOK_EVERY_S = 0.02
TRY_S = 180.0
PAUSE_S = 0.05
MEDIA_TYPE = "application/vnd.safetensors"

MODULES = {"recorder": b"lossd.recorder", "front": b"lossd.cli", "worker": b"lossd.engine"}
"""The processes that are killed, in turn, and the module in the command line of each."""

Kill = Callable[[random.Random], bool]
"""Kills something, and returns whether there was anything to kill."""

LOOKS = 0.04
"""The share of counted batches after which the run is read from another service."""

AGAIN = (429, 500, 502, 503, 504)
"""The statuses after which nothing is known of a batch, so that it is sent again."""


@dataclass(frozen=True)
class Batch:
    """Some rows of the data set.

    Attributes:
        name: The batch's name.
        first: The position of its first row.
        prediction: (N,) float32, logits.
        target: (N,) int64, 0 or 1.
    """

    name: str
    first: int
    prediction: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]

    @cached_property
    def body(self) -> bytes:
        """The batch as safetensors."""
        tensors = {"prediction": self.prediction, "target": self.target}
        return bytes(save(tensors, {"request": f'{{"first": {self.first}}}'}))


def data_set(count: int, seed: int) -> list[Batch]:
    """Return a data set in so many batches of 1 to 16 rows."""
    numbers = np.random.default_rng(seed)
    batches, first = [], 0
    for index in range(count):
        rows = int(numbers.integers(1, MOST_ROWS + 1))
        target = numbers.integers(0, 2, rows)
        prediction = (numbers.standard_normal(rows) + target).astype(np.float32)
        batches.append(Batch(f"{index:06d}", first, prediction, target))
        first += rows
    return batches


@dataclass
class ScoringLedger:
    """What became of the batches.

    Attributes:
        sent: PUTs of all kinds.
        created: 201, by the batch's name.
        repeated: 200, by the batch's name.
        conflicts: PUTs that had to be refused, and were, by problem.
        again: Answers, or breaks, after which a batch was sent again.
        wrong: Answers that no such request may have.
        kills: Processes that were killed, by kind.
        seconds: How long it took.
    """

    sent: int = 0
    created: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    conflicts: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        def listed(counter: Mapping[str, int]) -> str:
            return ", ".join(f"{what}: {count}" for what, count in sorted(counter.items())) or "none"

        twice = sum(count > 1 for count in self.created.values())
        unseen = len(self.repeated.keys() - self.created.keys())
        return "\n".join(
            [
                f"sent      {self.sent} in {self.seconds:.0f} s",
                f"counted   {len(self.created.keys() | self.repeated.keys())} batches: {self.created.total()} × 201, "
                f"{self.repeated.total()} × 200; {unseen} whose 201 was lost with a connection, {twice} with two",
                f"refused   {listed(self.conflicts)}",
                f"again     {listed(self.again)}",
                f"killed    {listed(self.kills)}",
                f"wrong     {len(self.wrong)}",
                *self.wrong[:10],
            ]
        )


def score(
    services: Sequence[Service],
    count: int,
    kills: int,
    ways: Mapping[str, Kill] | None = None,
    clients: int = 8,
    seed: int = 0,
) -> ScoringLedger:
    """Score a data set of so many batches, and compare the sealed result with one evaluation of all rows.

    Each request is sent to one of the services, by chance. Each batch is sent one to three times, in an order of
    chance. Some are followed by other data under the same name, and by their rows under another name. After some, the
    run is read from any service, which must know of the batch. In between, after equal shares of the batches, something
    is killed.

    Args:
        services: Services that keep their runs in one place.
        count: How many batches.
        kills: How often something is killed.
        ways: What is killed in turn, by name; by default the recorder, a front and a worker.
        clients: How many send at once.
        seed: Of what is left to chance.
    """
    ways = {kind: partial(kill_process, services, kind) for kind in MODULES} if ways is None else ways
    return asyncio.run(_score(services, kills, ways, clients, random.Random(seed), data_set(count, seed)))


async def _score(
    services: Sequence[Service],
    kills: int,
    ways: Mapping[str, Kill],
    clients: int,
    chance: random.Random,
    batches: Sequence[Batch],
) -> ScoringLedger:
    kinds, tags = list(ways), dict[str, int]()
    ledger, begin = ScoringLedger(), time.monotonic()
    first_answers: dict[str, Any] = {}
    todo = [batch for batch in batches for _ in range(chance.randint(1, 3))]
    chance.shuffle(todo)
    path = "/v1/runs/chaos"
    rows = batches[-1].first + len(batches[-1].target)
    definition = {
        "task": "binary",
        "metrics": {"names": METRICS},
        "identity": "position",
        "dataset": {"name": "chaos", "rows": rows},
    }
    limits = httpx.Limits(max_connections=4 * clients)
    async with httpx.AsyncClient(timeout=20, limits=limits) as http:

        async def ask(method: str, to: str, **sent: Any) -> httpx.Response:
            """Send to any of the services, until the answer says what became of it."""
            end = time.monotonic() + TRY_S
            while True:
                ledger.sent += 1
                try:
                    answer = await http.request(method, chance.choice(services).url + to, **sent)
                except httpx.TransportError as error:
                    what = type(error).__name__
                else:
                    if answer.status_code not in AGAIN:
                        return answer
                    what = str(answer.status_code)
                ledger.again[what] += 1
                assert time.monotonic() < end, f"{to} has no answer after {TRY_S:.0f} s"
                await asyncio.sleep(PAUSE_S * (1 + chance.random()))

        async def put_batch(batch: Batch, name: str | None = None) -> httpx.Response:
            to = f"{path}/batches/{name or batch.name}"
            return await ask("PUT", to, content=batch.body, headers={"content-type": MEDIA_TYPE})

        async def send(batch: Batch) -> None:
            answer = await put_batch(batch)
            if answer.status_code not in (200, 201):
                ledger.wrong.append(f"{batch.name}: {answer.status_code} {answer.text[:200]}")
                return
            (ledger.created if answer.status_code == 201 else ledger.repeated)[batch.name] += 1
            if first_answers.setdefault(batch.name, answer.json()) != answer.json():
                ledger.wrong.append(f"{batch.name}: {answer.json()} after {first_answers[batch.name]}")
            if chance.random() < LOOKS:
                await look(answer.json()["run"]["batches"])
            if chance.random() < 0.05:
                other = Batch(batch.name, batch.first, batch.prediction + 1, batch.target)
                expect(await put_batch(other), "batch-conflict")
            if chance.random() < 0.05:
                expect(await put_batch(batch, f"{batch.name}-again"), "duplicate-rows")

        async def look(batches_then: int) -> None:
            """Read the run: no service may know less than another one has answered."""
            known = chance.choice([*tags, ""])
            answer = await ask("GET", path, headers={"if-none-match": known})
            if answer.status_code == 304:
                found = tags[known]
            else:
                found = tags[answer.headers["etag"]] = answer.json()["counted"]["batches"]
            if found < batches_then:
                ledger.wrong.append(f"{found} batches after {batches_then}, {answer.status_code}")

        def expect(answer: httpx.Response, problem: str) -> None:
            if answer.status_code == 409 and answer.json()["type"] == f"/problems/{problem}":
                ledger.conflicts[problem] += 1
            else:
                ledger.wrong.append(f"{problem} expected: {answer.status_code} {answer.text[:200]}")

        async def client() -> None:
            while todo:
                await send(todo.pop())

        async def kill() -> None:
            while ledger.kills.total() < kills:
                await asyncio.sleep(LOOK_EVERY_S)
                if len(first_answers) * (kills + 1) < len(batches) * (ledger.kills.total() + 1):
                    continue
                kind = kinds[ledger.kills.total() % len(kinds)]
                if await asyncio.to_thread(ways[kind], chance):
                    ledger.kills[kind] += 1

        assert (await ask("PUT", path, json=definition)).status_code in (200, 201)
        killer = asyncio.create_task(kill())
        try:
            await asyncio.gather(*(client() for _ in range(clients)))
        finally:
            killer.cancel()
        ledger.seconds = time.monotonic() - begin
        assert (await put_batch(batches[0])).status_code == 200
        await _check_result(ask, path, batches, ledger)
        answers = [(await http.get(service.url + path)) for service in services if service.ready()]
        for answer in answers:
            if (answer.text, answer.headers["etag"]) != (answers[0].text, answers[0].headers["etag"]):
                ledger.wrong.append(f"{answer.text[:200]} from one service, {answers[0].text[:200]} from another")
    return ledger


async def _check_result(ask: Any, path: str, batches: Sequence[Batch], ledger: ScoringLedger) -> None:
    """Compare what the services keep, and the sealed result, with the data set."""
    kept: Counter[str] = Counter()
    after = None
    while True:
        page = (await ask("GET", f"{path}/batches", params={} if after is None else {"after": after})).json()
        kept.update(entry["batch"] for entry in page["batches"])
        if (after := page.get("next")) is None:
            break
    if kept != Counter(batch.name for batch in batches):
        ledger.wrong.append(f"the service lists {len(kept)} batches, {kept.most_common(1)} most often")
    if lost := [name for name in ledger.created if name not in kept]:
        ledger.wrong.append(f"201 was answered for {lost[:5]}, which is not kept")
    sealed = (await ask("POST", f"{path}/seal", json={}, timeout=60)).json()
    prediction = np.concatenate([batch.prediction for batch in batches])
    target = np.concatenate([batch.target for batch in batches])
    whole = lossd.evaluate(None, prediction, target, task="binary", metrics=METRICS).metrics
    once = lossd.Run(task="binary", metrics={"names": METRICS}, identity="position", rows=len(target))
    once.add(prediction, target, first=0)
    expected = once.result().to_dict()
    found = sealed.get("result") or {}
    for name in ("digest", "metrics", "targets"):
        if found.get(name) != expected[name]:
            ledger.wrong.append(f"the sealed {name} is {found.get(name)}, not {expected[name]}")
    exact = {name: value for name, value in found.get("metrics", {}).items() if name not in ("log_loss", "ece")}
    if exact != {name: getattr(whole, name) for name in exact}:
        ledger.wrong.append(f"one evaluation of all rows gives {whole}")
    if sealed.get("missing") != [] or sealed["counted"] != {
        "rows": len(target),
        "entries": len(target),
        "batches": len(batches),
    }:
        ledger.wrong.append(f"missing is {sealed.get('missing')}, counted {sealed.get('counted')}")


def kill_process(services: Sequence[Service], kind: str, chance: random.Random) -> bool:
    """Kill a process of some kind; return whether there was one."""
    pids = [pid for service in services for pid in processes_of(service)[kind]]
    if pids:
        os.kill(chance.choice(pids), signal.SIGKILL)
    return bool(pids)


def processes_of(service: Service) -> dict[str, list[int]]:
    """Return the ids of the service's processes, by kind."""
    found: dict[str, list[int]] = {kind: [] for kind in MODULES}
    parent = service.process.pid
    for pid in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        for kind, module in MODULES.items():
            if module in command:
                found[kind].append(pid)
    return found
