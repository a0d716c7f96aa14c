"""Tests of `llava_sp.eval.benchmarks`."""
