"""LLaVA-SP inside vLLM: its Transformers backend builds the model without its head, and brings a head of its own."""

import torch
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM

from llava_sp.model.modeling_llava_sp import silence_unused_rows


class LlavaSPForCausalLM(TransformersMultiModalForCausalLM):
    """vLLM's own class, whose head leaves out the rows for `<image>` and for padding as ours does."""

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Maps hidden states [tokens, H] to logits [tokens, V]; `None` on ranks that do not sample."""
        logits = super().compute_logits(hidden_states)
        if logits is not None:
            silence_unused_rows(logits, self.config)
        return logits
