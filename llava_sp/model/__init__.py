"""The model: configuration, modules, processor, loading and saving."""
