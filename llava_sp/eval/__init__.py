"""Evaluation: batched generation and the benchmarks."""
