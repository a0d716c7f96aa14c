"""The model: configuration, modules, processor, loading and saving."""

import logging

# Where bitsandbytes is installed, PEFT imports it. It warns of a kernel that nobody asked for, and then in every 8-bit
# layer of every pass that it computes in float16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# First of all, so that the registration with its Auto classes finds no module of this package half imported.
import transformers  # noqa: E402, F401
