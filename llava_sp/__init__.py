"""LLaVA-SP: LLaVA-1.5 with six spatial visual tokens (arXiv 2507.00505).

Importing the package is cheap: the public names load on first use, and neither wandb nor deepspeed is ever touched.
transformers' Auto classes know the model as soon as both packages are imported, in either order.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from llava_sp.utils.importing import when_imported

if TYPE_CHECKING:
    from llava_sp.model.configuration_llava_sp import LlavaSPConfig
    from llava_sp.model.image_processing_llava_sp import LlavaSPImageProcessor
    from llava_sp.model.loading import load
    from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM, LlavaSPModel
    from llava_sp.model.processing_llava_sp import LlavaSPProcessor

__version__ = "0.1.0"

__all__ = ["LlavaSPConfig", "LlavaSPForCausalLM", "LlavaSPImageProcessor", "LlavaSPModel", "LlavaSPProcessor", "load"]

_HOME = {
    "LlavaSPConfig": "llava_sp.model.configuration_llava_sp",
    "LlavaSPForCausalLM": "llava_sp.model.modeling_llava_sp",
    "LlavaSPImageProcessor": "llava_sp.model.image_processing_llava_sp",
    "LlavaSPModel": "llava_sp.model.modeling_llava_sp",
    "LlavaSPProcessor": "llava_sp.model.processing_llava_sp",
    "load": "llava_sp.model.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def _register() -> None:
    from llava_sp.model.registration import register

    register()


# Else transformers asks, in a thread, a service on the Hub to convert a repository whose weights are pickles.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
when_imported("transformers", _register)
