"""Score the rows of a Spark data frame: ``spark-submit spark_score.py predictions.parquet``."""

# #region score
import numpy as np

import lossd


def states_of(rows):
    """Yield the state of a run of a partition's rows: ``id``, ``prediction`` (a list) and ``target``."""
    run, rows = lossd.Run(task="multiclass", metrics=["default", "auroc"], identity="id"), list(rows)
    for begin in range(0, len(rows), 8192):
        batch = rows[begin : begin + 8192]
        prediction = np.array([row.prediction for row in batch])
        target = np.array([row.target for row in batch])
        run.add(prediction, target, sample_id=np.array([row.id for row in batch]))
    yield run.state()


def merged(one, other):
    """Return the state of the rows of two states."""
    run = lossd.Run.from_state(one)
    run.merge(lossd.Run.from_state(other))
    return run.state()


def score(frame):
    """Return the score of all rows of a data frame."""
    return lossd.Run.from_state(frame.rdd.mapPartitions(states_of).treeReduce(merged)).result()


# #endregion


if __name__ == "__main__":
    import sys

    from pyspark.sql import SparkSession

    result = score(SparkSession.builder.getOrCreate().read.parquet(sys.argv[1]))
    print(result.targets, result.digest, result.counted.rows)
