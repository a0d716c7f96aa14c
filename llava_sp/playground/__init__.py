"""The tiny world: scenes, their LLaVA-format data, small base models, and the score of what was learnt on them."""

from pathlib import Path

BASE = Path(__file__).parent / "base"
"""The base models that come along: `llm` and `vision_tower`, made by `base_models`."""
