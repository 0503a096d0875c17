"""Which rows a run has counted, and in which groups and slices."""
