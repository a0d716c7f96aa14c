"""The model: configuration, modules, processor, loading and saving."""

# First of all, so that the registration with its Auto classes finds no module of this package half imported.
import transformers  # noqa: F401
