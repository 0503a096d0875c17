"""The coverage of intervals and the power of comparisons: ``make simulate``, or in tests, ``python -m simulations``."""

from __future__ import annotations

import sys
import time

import click
import numpy as np

from simulations.coverage import coverage, power
from simulations.populations import clusters, decisions, images, mixed, numbers, scores, zipf

POPULATIONS = {
    "10 classes, accuracy 0.8": lambda: mixed(zipf(10), 0.8),
    "21 classes of 0.013 and more, accuracy 0.8": lambda: mixed(zipf(21), 0.8),
    "decisions, accuracy 0.99": lambda: decisions(0.99),
    "scores, 30 % positive": lambda: scores(0.3, 1.5),
    "scores, 5 % positive": lambda: scores(0.05, 1.5),
    "numbers, r2 0.81": lambda: numbers(0.9),
    "images of 64 pixels": images,
    "clusters of 50 rows": lambda: clusters(50),
}
ROWS = (500, 2000, 20_000)
LEAST, MOST = 0.93, 0.97

NAMED = {
    ("scores, 5 % positive", "auroc", 500): "25 positive rows: no interval",
    ("clusters of 50 rows", "accuracy", 500): "10 clusters: no interval",
}


@click.command()
@click.option("--draws", default=400, show_default=True, help="Samples of 500 rows; of more rows fewer.")
@click.option("--population", "chosen", multiple=True, type=click.Choice([*POPULATIONS]), help="By default all.")
@click.option("--seed", default=1, show_default=True)
def main(draws: int, chosen: tuple[str, ...], seed: int) -> None:
    """Print a table of the coverage of nominal 95 %, and fail if a figure is outside what was promised."""
    failed = False
    started = time.process_time()
    for name in chosen or POPULATIONS:
        population = POPULATIONS[name]()
        for rows in ROWS:
            times = draws if rows < 20_000 else max(10, draws // 4)
            slack = 2.6 * np.sqrt(0.95 * 0.05 / times)  # of so few draws
            for number, found in coverage(population, rows, times, seed).items():
                known = NAMED.get((name, number, rows), "")
                wrong = not LEAST - slack < found.covered < MOST + slack and not known
                failed |= wrong
                print(
                    f"{name:44} {number:14} {rows:6} rows {found.draws:5} draws: covered {found.covered:.3f}, "
                    f"given {found.interval_share:.2f}, SE/SD {found.ratio:.2f} {known}"
                    f"{'  <- outside' if wrong else ''}",
                    flush=True,
                )
    if not chosen:
        for better in (0.012, 0.0):
            found = power(3000, better, draws // 2, seed)
            print(f"difference {better}: found {found.paired:.2f} paired, {found.unpaired:.2f} unpaired", flush=True)
    print(f"{time.process_time() - started:.0f} s of CPU")
    sys.exit(failed)


if __name__ == "__main__":
    main()
