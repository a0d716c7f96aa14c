"""LLaVA-SP: LLaVA-1.5 with six spatial visual tokens (arXiv 2507.00505).

Importing the package registers the model with transformers' Auto classes. It never touches wandb or deepspeed.
"""

from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.image_processing_llava_sp import LlavaSPImageProcessor
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM, LlavaSPModel
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.model.registration import register

__version__ = "0.1.0"

__all__ = ["LlavaSPConfig", "LlavaSPForCausalLM", "LlavaSPImageProcessor", "LlavaSPModel", "LlavaSPProcessor"]

register()
