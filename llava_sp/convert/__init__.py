"""Conversion between this project's checkpoints and others."""
