"""Metrics, traces, the access log, health."""
