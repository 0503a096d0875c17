"""The score of files: their rows in blocks, in chunks for many processes, and the states of chunks as one run."""
