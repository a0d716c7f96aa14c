"""Facts shared by every layer."""

IGNORE_INDEX = -100
"""Label of a position that takes no part in the loss (PyTorch's default `ignore_index`)."""

IMAGE_TOKEN = "<image>"  # noqa: S105 - no password
"""The placeholder that a conversation carries for one image; every visual token takes one copy of it."""

MAX_PIXELS = 64_000_000
"""Pixels of the largest image that is decoded by default; decoded, it takes 192 MB."""
