"""Makes transformers' Auto classes know LLaVA-SP."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

# From its home: what the package itself exports is a stand-in that raises, in older versions without torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.image_processing_llava_sp import LlavaSPImageProcessor
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM, LlavaSPModel
from llava_sp.model.processing_llava_sp import LlavaSPProcessor


def register() -> None:
    """Registers configuration, models and processors; calling it again changes nothing."""
    AutoConfig.register(LlavaSPConfig.model_type, LlavaSPConfig, exist_ok=True)
    AutoModel.register(LlavaSPConfig, LlavaSPModel, exist_ok=True)
    AutoModelForCausalLM.register(LlavaSPConfig, LlavaSPForCausalLM, exist_ok=True)
    AutoModelForImageTextToText.register(LlavaSPConfig, LlavaSPForCausalLM, exist_ok=True)
    AutoProcessor.register(LlavaSPConfig, LlavaSPProcessor, exist_ok=True)
    AutoImageProcessor.register(
        LlavaSPConfig,
        image_processor_classes={"pil": LlavaSPImageProcessor, "torchvision": LlavaSPImageProcessor},
        exist_ok=True,
    )
