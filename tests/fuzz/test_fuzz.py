"""Requests that are almost right, to the codecs and to a running service: an answer or a reason, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import CORPUS, SEEDS, Sent, mutated
from fuzz.oracle import Answer, UnacceptableError, Wire, check_answer, check_codecs
from fuzz.tables import of_every_loss
from lossd_client.wire import safetensors
from serving import Running, running

FORMS = {".json": "application/json", ".safetensors": safetensors.MEDIA_TYPE}
CHANCE = st.randoms(use_true_random=False)
KEPT = sorted(CORPUS.iterdir())


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running() as service:
        yield service
        assert service.engine.in_progress == 0
        assert service.engine.budget.held_bytes == 0
        assert service.engine.pool.in_use == 0
        assert service.engine.stats.restarts == 0


@pytest.fixture(scope="module")
def wire(service: Running) -> Iterator[Wire]:
    wire = Wire(service.port)
    yield wire
    wire.close()


def test_what_mutations_start_from_is_evaluated(wire: Wire) -> None:
    for sent in (*SEEDS, *of_every_loss()):
        answer = wire.post(sent)
        check_answer(sent, answer)
        assert answer.status == 200, f"{answer.content!r} to {sent}"


@given(CHANCE)
@settings(max_examples=250)
def test_the_codecs_read_or_refuse(random: Random) -> None:
    check_codecs(mutated(random))


@given(st.binary(max_size=300), st.sampled_from(SEEDS))
@settings(max_examples=200)
def test_the_codecs_read_or_refuse_any_bytes(body: bytes, like: Sent) -> None:
    check_codecs(Sent(like.path, body, like.headers))


@given(CHANCE)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_service_answers_or_says_why_not(wire: Wire, random: Random) -> None:
    sent = mutated(random)
    check_answer(sent, wire.post(sent))


@given(CHANCE)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_loss_answers_or_says_why_not(wire: Wire, random: Random) -> None:
    sent = mutated(random, random.choice(of_every_loss()))
    check_answer(sent, wire.post(sent))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_what_once_did_harm_does_none(path: Path, wire: Wire) -> None:
    """Each body of the corpus, as it was found."""
    if path.suffix == ".oip":
        sent = Sent("/v2/models/mse/infer", path.read_bytes())
    else:
        sent = Sent("/v1/evaluate", path.read_bytes(), {"Content-Type": FORMS[path.suffix]})
    check_codecs(sent)
    check_answer(sent, wire.post(sent))


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, b'{"type":"/problems/internal-error","title":"t","status":500,"detail":"d"}'),
        (400, b'{"type":"/problems/malformed-body","title":"t","status":400,"detail":"at 0x: <class \'int\'>"}'),
        (400, b'{"type":"/problems/malformed-body","title":"t","status":400,"detail":"\\u001b[31m"}'),
        (400, b'{"type":"/problems/malformed-body","title":"t","status":422,"detail":"d"}'),
        (400, b'{"type":"/problems/other","title":"t","status":400,"detail":"d"}'),
        (200, b"{}"),
    ],
)
def test_the_oracle_knows_a_bad_answer(status: int, content: bytes) -> None:
    headers = Message()
    headers["content-type"] = "application/json" if status == 200 else "application/problem+json"
    with pytest.raises((UnacceptableError, AssertionError)):
        check_answer(SEEDS[0], Answer(status, headers, content, 0.1))
