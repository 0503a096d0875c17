"""Sums and tables that no order, split or merging changes."""
