"""What vLLM needs to know; its entry point `vllm.general_plugins` calls `register` in each of its processes.

Importing this package already makes transformers' Auto classes know the model, through which vLLM finds configuration
and processor.
"""


def register() -> None:
    """Tells vLLM's registry which class serves the architecture; it is imported where a model is built, not here."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("LlavaSPForCausalLM", "llava_sp.serve.vllm_model:LlavaSPForCausalLM")
