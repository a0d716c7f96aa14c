"""Training: arguments, trainer, optimizer groups, LoRA, checkpoints."""
