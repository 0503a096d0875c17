"""Score a data set on the ranks of an MPI program: ``mpiexec -n 16 python mpi_score.py 'predictions/*.npz'``."""

# #region score
import numpy as np
from mpi4py import MPI

import lossd


def score(paths):
    """Return the score of files of prediction and target, on rank 0; on other ranks, None."""
    world = MPI.COMM_WORLD
    run = lossd.Run(task="multiclass", metrics=["default", "auroc"], identity="position")
    first = 0
    for number, path in enumerate(paths):
        arrays = np.load(path)
        if number % world.size == world.rank:
            run.add(arrays["prediction"], arrays["target"], first=first)
        first += len(arrays["target"])  # the rows of other ranks' files have their positions too
    states = world.gather(run.state())
    if states is None:
        return None
    whole, *others = map(lossd.Run.from_state, states)
    for other in others:
        whole.merge(other)
    return whole.result()


# #endregion


if __name__ == "__main__":
    import glob
    import sys

    result = score(sorted(glob.glob(sys.argv[1])))
    if result is not None:
        print(result.targets, result.digest, result.counted.rows)
