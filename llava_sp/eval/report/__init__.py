"""The report on an output folder of `python -m llava_sp.eval`, and its comparison with others."""
