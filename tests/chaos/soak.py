"""Load of every kind, good, bad and ugly, while workers are killed and stopped; and what became of each request."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest

from chaos.http import BrokenError, Connection, Response, head
from chaos.probes import Span
from chaos.questions import Question, questions, refused
from chaos.service import Service

IDLE_S = 3.0
CLIENTS = 96
DISTINCT = 240
STOP_S = 1.5
SETTLE_S = 0.3

SETTINGS = {
    "idle_timeout_ms": round(IDLE_S * 1000),
    "queue_requests": 400,
    "queue_bytes": 1 << 30,
    "cache_bytes": 64 << 20,
}
"""Of the service: time-outs that a soak can wait for, and memory that it can fill."""

BUDGET_BYTES = (1 << 30) + (64 << 20) + (128 << 20) + 16 * (8 << 20)
"""The memory that docs/security.md states, beside an idle service's: queue_bytes, cache_bytes, the front's caches, and
16 times a batch for the worker's other temporaries."""

KEYS = {name: f"{name}-key-of-a-test-{name}" for name in ("first", "second", "third")}

# How often each happens, in parts of a hundred.
WAYS = {"asks": 72, "is refused": 9, "has no time": 6, "is slow": 4, "leaves": 8, "stalls": 1}


@dataclass
class Ledger:
    """What became of the requests.

    Attributes:
        sent: All of them.
        answered: With the value computed alone, or with the refusal that it must have.
        refused: Good ones that were turned away, by problem: full queue, passed deadline, no worker.
        left: Clients that did not wait for their answer.
        stalled: Clients that stopped sending, and were told so.
        wrong: Answers that no such request may have.
        lost: Requests without an answer.
        kills: Workers killed.
        stops: Workers stopped for a while.
        restarts: Workers started in place of others.
        disturbed: When a killed or stopped worker was not yet back.
        answers: When each good request of the answered was answered.
        seconds: How long it took.
    """

    sent: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    left: int = 0
    stalled: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    kills: int = 0
    stops: int = 0
    restarts: int = 0
    disturbed: list[Span] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def accounted(self) -> int:
        """Must be all that were sent."""
        seen = self.answered.total() + self.refused.total() + self.left + self.stalled
        return seen + len(self.wrong) + len(self.lost)

    def answered_within(self, span: Span) -> int:
        """Return how many good requests were answered in that time."""
        return bisect(self.answers, span[1]) - bisect(self.answers, span[0])

    def __str__(self) -> str:
        answered = ", ".join(f"{way}: {count}" for way, count in self.answered.items())
        turned_away = ", ".join(f"{problem}: {count}" for problem, count in self.refused.items()) or "none"
        return "\n".join(
            [
                f"sent      {self.sent} in {self.seconds:.0f} s",
                f"answered  {self.answered.total()} ({answered})",
                f"refused   {self.refused.total()} ({turned_away})",
                f"left      {self.left}",
                f"stalled   {self.stalled}",
                f"wrong     {len(self.wrong)}",
                f"lost      {len(self.lost)}",
                f"killed    {self.kills} workers; stopped {self.stops}; {self.restarts} restarts",
                *self.wrong[:10],
                *self.lost[:10],
            ]
        )


def soak(
    service: Service, requests: int, kills: int, seed: int = 0, *,
    stops: int = 0, seconds: float = 0.0, begun: Callable[[], object] = bool,
) -> Ledger:  # fmt: skip
    """Send that many requests, kill and stop that many workers meanwhile, and compare every answer.

    Args:
        service: With :data:`SETTINGS` and :data:`KEYS`.
        requests: How many, at least.
        kills: How many.
        seed: Of everything that is left to chance here; when the system schedules what is not.
        stops: How many.
        seconds: How long, at least.
        begun: Called before the first request.
    """
    good, bad = questions(DISTINCT, seed), refused(seed)
    service.wait_until_ready()
    ledger, begin = Ledger(), time.monotonic()
    begun()
    asyncio.run(_Soak(service, requests, kills, stops, seconds, seed, good, bad, ledger).run())
    ledger.seconds = time.monotonic() - begin
    service.wait_until_ready()
    service.wait_until_idle()
    ledger.restarts = int(service.metrics()["lossd_worker_restarts_total"])
    return ledger


class _Soak:
    def __init__(
        self, service: Service, requests: int, kills: int, stops: int, seconds: float, seed: int,
        good: Sequence[Question], bad: Sequence[Question], ledger: Ledger,
    ) -> None:  # fmt: skip
        self.service = service
        self.requests = requests
        self.seconds = seconds
        self.begin = time.monotonic()
        self.chance = random.Random(seed)
        # In turns, as far as there are both.
        pairs = zip_longest([signal.SIGKILL] * kills, [signal.SIGSTOP] * stops)
        self.signals = [number for pair in pairs for number in pair if number is not None]
        self.good = good
        self.bad = bad
        self.ledger = ledger

    @property
    def progress(self) -> float:
        """The part that is done, from 0 to 1."""
        by_time = (time.monotonic() - self.begin) / self.seconds if self.seconds else 1.0
        return min(1.0, by_time, self.ledger.sent / self.requests if self.requests else 1.0)

    async def run(self) -> None:
        harming = asyncio.ensure_future(self._harm())
        await asyncio.gather(*(self._client(key) for key in KEYS.values() for _ in range(CLIENTS // len(KEYS))))
        await harming

    async def _harm(self) -> None:
        """Kill or stop whatever worker there is, each time when another part of the soak is done."""
        for number, harm in enumerate(self.signals, 1):
            while self.progress < number / (len(self.signals) + 1):
                await asyncio.sleep(0.01)
            while not (workers := self.service.workers()):
                await asyncio.sleep(0.01)
            begin, worker = time.monotonic(), self.chance.choice(workers)
            with suppress(ProcessLookupError):
                os.kill(worker, harm)
                if harm == signal.SIGKILL:
                    self.ledger.kills += 1
                else:
                    self.ledger.stops += 1
                    await asyncio.sleep(STOP_S)
                    os.kill(worker, signal.SIGCONT)
            await asyncio.sleep(SETTLE_S)  # so that the front knows
            while not await asyncio.to_thread(self.service.ready):
                await asyncio.sleep(0.1)
            self.ledger.disturbed.append((begin, time.monotonic()))

    async def _client(self, key: str) -> None:
        connection: Connection | None = None
        while self.progress < 1:
            self.ledger.sent += 1
            way = self.chance.choices([*WAYS], [*WAYS.values()])[0]
            question = self.chance.choice(self.bad if way == "is refused" else self.good)
            if connection is None:
                connection = await Connection.open(self.service.port)
            try:
                async with asyncio.timeout(90):
                    answer = await self._ask(connection, way, question, {**question.headers, "X-API-Key": key})
            except (BrokenError, TimeoutError) as error:
                self.ledger.lost.append(f"{way}: {question.path}, {len(question.body)} bytes: {error!r}")
                answer = None
            if answer is not None:
                self._enter(way, question, answer)
            if answer is None or answer.headers.get("connection") == "close":
                connection.abort()
                connection = None
        if connection is not None:
            await connection.close()

    async def _ask(
        self, connection: Connection, way: str, question: Question, headers: dict[str, str]
    ) -> Response | None:
        """One request in one of the ways; None where the client left."""
        body = question.body
        if way == "has no time":
            headers["X-Request-Timeout-Ms"] = str(self.chance.randint(1, 200))
        whole = head("POST", question.path, headers, len(body)) + body
        cut = self.chance.randrange(1, len(whole))
        if way == "leaves":
            await connection.send(whole if self.chance.random() < 0.5 else whole[:cut])
            await asyncio.sleep(self.chance.random() * 0.05)
            self.ledger.left += 1
            return None
        if way == "stalls":
            await connection.send(whole[: min(cut, len(whole) - len(body) // 2)])
        elif way == "is slow":
            for first, last in ((0, cut // 2), (cut // 2, cut), (cut, len(whole))):
                await connection.send(whole[first:last])
                await asyncio.sleep(self.chance.random() * IDLE_S / 10)
        else:
            await connection.send(whole)
        return await connection.answer()

    def _enter(self, way: str, question: Question, answer: Response) -> None:
        """Where the answer belongs in the ledger."""
        ledger = self.ledger
        if way == "stalls":
            right = answer.status == 408
            ledger.stalled += right
        elif right := question.is_answered(answer):
            ledger.answered[way] += 1
            if question.loss is not None:
                ledger.answers.append(time.monotonic())
        elif right := answer.status in (429, 503) or (answer.status == 504 and way == "has no time"):
            ledger.refused[answer.problem] += 1
        if not right:
            request = f"{question.path} ({question.problem or 'to be answered'})"
            ledger.wrong.append(f"{way}: {request}: {answer.status} {answer.body[:300]!r}")
