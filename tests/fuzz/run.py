"""``make fuzz``: everything that is thrown at lossd, for as long as one likes: ``make fuzz FUZZ="--seconds 600"``.

A third of the time each: the codecs, guided by their coverage where atheris is installed, else by chance alone; the
service, by requests that are almost right; the service, by what its OpenAPI document says, where schemathesis is
installed. Its passes are compiled anew, so that an index out of bounds is an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fuzz.mutations import CORPUS, SEEDS, Sent, mutated  # noqa: E402  (found by the line above)
from fuzz.oracle import UnacceptableError, Wire, check_answer, check_codecs  # noqa: E402
from fuzz.tables import of_every_loss  # noqa: E402
from serving import running  # noqa: E402


def main() -> None:
    """Run, and exit with 1 where anything was found; what did harm is in the corpus then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what chance starts from")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    share = arguments.seconds / 3
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"NUMBA_BOUNDSCHECK": "1", "LOSSD_CACHE_DIR": cache}
        harm = [*_codecs(share, arguments.seed), *_service(share, arguments.seed), *_documented(share)]
    for what in harm:
        print(what)
    sys.exit(1 if harm else 0)


def _codecs(seconds: float, seed: int) -> list[str]:
    if importlib.util.find_spec("atheris") is None:
        print("codecs: by chance alone, atheris is not installed")
        return _codecs_by_chance(seconds, seed)
    command = [sys.executable, str(ROOT / "tests/fuzz/codecs.py"), f"-max_total_time={seconds:.0f}", "-verbosity=0"]
    done = subprocess.run([*command, "-print_final_stats=1", f"-seed={seed % 2**31}"], capture_output=True, text=True)
    counted = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    print("codecs, by coverage:", *counted)
    return [] if done.returncode == 0 else [done.stdout[-3000:] + done.stderr[-3000:]]


def _codecs_by_chance(seconds: float, seed: int) -> list[str]:
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        sent = mutated(Random(seed + count))
        count += 1
        try:
            check_codecs(sent)
        except Exception as error:
            return [_kept(sent, error)]
    print(f"codecs: {count} bodies")
    return []


def _service(seconds: float, seed: int) -> list[str]:
    harm: list[str] = []
    statuses: Counter[int] = Counter()
    seeds = (*SEEDS, *of_every_loss())
    with running(mortal=True) as service:
        wire, end, count = Wire(service.port), time.monotonic() + seconds, 0
        while time.monotonic() < end and len(harm) < 10:
            random = Random(seed + count)
            sent = mutated(random, random.choice(seeds))
            count += 1
            try:
                answer = wire.post(sent)
                statuses[answer.status] += 1
                check_answer(sent, answer)
            except UnacceptableError as error:
                harm.append(_kept(sent, error))
        wire.close()
        held = (service.engine.in_progress, service.engine.budget.held_bytes, service.engine.pool.in_use)
        if any(held):
            harm.append(f"lost: {held} requests, bytes, slabs")
        if service.engine.stats.restarts:
            harm.append(f"{service.engine.stats.restarts} workers died")
    print(f"service: {count} requests, {dict(sorted(statuses.items()))}")
    return harm


def _documented(seconds: float) -> list[str]:
    if importlib.util.find_spec("schemathesis") is None:
        print("OpenAPI: schemathesis is not installed")
        return []
    examples = max(1, round(seconds))
    test = str(ROOT / "tests/fuzz/test_openapi.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0", test]
    environment = {**os.environ, "FUZZ_EXAMPLES": str(examples)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    print("OpenAPI:", done.stdout.strip().splitlines()[-1])
    return [] if done.returncode == 0 else [done.stdout[-5000:]]


def _kept(sent: Sent, error: Exception) -> str:
    """Put a body that did harm where the suite finds it."""
    CORPUS.mkdir(exist_ok=True)
    path = CORPUS / f"found-{time.time_ns():x}.{sent.form}"
    path.write_bytes(sent.body)
    return f"{path.relative_to(ROOT)} ({sent.path}, {sent.headers}): {type(error).__name__}: {str(error)[:2000]}"


if __name__ == "__main__":
    main()
