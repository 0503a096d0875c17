"""Tensors in files, on this machine or under a URL: found, opened, and read a few rows at a time."""
