"""The tiny world: a small visual world for the quickstart, the tests and honest comparisons."""
