"""What SGLang needs to know; its entry point `sglang.srt.plugins` calls `register` in each of its processes.

Importing this package already makes transformers' Auto classes know the model, through which SGLang finds
configuration, processor and, with `--model-impl transformers`, the model itself.
"""

from typing import Any

FORWARD = "sglang.srt.models.transformers.TransformersMultiModalForCausalLM.forward"


def register() -> None:
    """Has SGLang's Transformers backend leave out the rows of its head for `<image>` and for padding, as ours does."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(FORWARD, silence, HookType.AFTER)


def silence(output: Any, model: Any, *_: Any, **__: Any) -> None:
    """Changes what the backend's `forward` returns, in place, where the model is ours and has a head on this rank."""
    from llava_sp.model.configuration_llava_sp import LlavaSPConfig
    from llava_sp.model.modeling_llava_sp import silence_unused_rows

    logits = getattr(output, "next_token_logits", None)
    if logits is not None and isinstance(model.config, LlavaSPConfig):
        silence_unused_rows(logits, model.config)
