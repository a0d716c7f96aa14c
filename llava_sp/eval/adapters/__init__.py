"""LLaVA-SP inside other evaluation kits: lmms-eval and VLMEvalKit. Each kit is imported by its own module only."""

from typing import Any


def lmms_eval_manifest() -> Any:
    """Tells lmms-eval's registry which class runs `--model llava_sp`; the entry point `lmms_eval.models` calls it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("llava_sp", simple_class_path="llava_sp.eval.adapters.lmms_eval.LlavaSP")
