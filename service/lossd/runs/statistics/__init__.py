"""How sure a metric is, and whether two runs differ."""
