"""The tiny world: scenes, their LLaVA-format data, small base models, and the score of what was learnt on them."""
