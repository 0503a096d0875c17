"""``/v1/runs``: the score of a whole data set, counted over many requests."""
