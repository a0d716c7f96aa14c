"""Tests of `llava_sp.bench`."""
