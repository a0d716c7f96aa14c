"""Benchmarks of this package's own speed and memory."""
