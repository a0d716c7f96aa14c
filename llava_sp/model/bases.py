"""What partial checkpoints stand on: found, and told from other models."""

import numpy as np
from PIL import Image
from transformers.utils import cached_file

from llava_sp.model.card import Card
from llava_sp.model.configuration_llava_sp import LlavaSPConfig
from llava_sp.model.fingerprint import same_weights
from llava_sp.model.modeling_llava_sp import LlavaSPForCausalLM
from llava_sp.model.parts import absolute, explained
from llava_sp.model.processing_llava_sp import LlavaSPProcessor
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import read_json_object

SIZES = ("hidden_size", "num_hidden_layers", "image_size", "patch_size")


def resolve_parts(path: str, card: Card, base: str | None) -> dict[str, str]:
    """Returns what a partial checkpoint stands on: `model`, or `llm` and `vision_tower`.

    Args:
        path: The checkpoint, for messages.
        card: Its card.
        base: What to take in place of what the card names.

    Raises:
        UserError: An LLM is given to a checkpoint that stands on a whole model.
    """
    if base is None:
        return card.parts
    if model_type(base) == LlavaSPConfig.model_type:
        return {"model": base}
    if "model" in card.parts:
        raise UserError(f"{path} stands on the model {card.parts['model']}; give that, or a copy of it, as its base.")
    return {**card.parts, "llm": absolute(base)}


def check_base(path: str, card: Card, base: str | None, found: dict[str, str]) -> None:
    """Checks that a base has the weights that a checkpoint was trained with, as far as its card tells.

    Args:
        path: The checkpoint, for messages.
        card: Its card.
        base: What was given as its base, for messages.
        found: The base's fingerprints, as in the card.

    Raises:
        UserError: The base has other weights.
    """
    for part, name in (("llm", "LLM"), ("vision_tower", "vision tower")):
        if part in card.fingerprint and part in found and not same_weights(card.fingerprint[part], found[part]):
            used = base or card.parts.get(part) or card.parts["model"]
            raise UserError(
                f"{path} was trained with another {name} than that of {used}: its weights differ. Give what it stands "
                "on as its base (--model-base, --base or --model_name_or_path), or take this one all the same "
                "(allow_other_base=True, --allow-other-base)."
            )


def check_sizes(path: str, model: LlavaSPForCausalLM) -> None:
    """Checks that the parts of a model have the sizes that its configuration asks for.

    Args:
        path: The checkpoint with the configuration, for messages.
        model: The model, made of parts.

    Raises:
        UserError: The LLM or the vision tower has other sizes.
    """
    core, config, origin = model.model, model.config, model.origin or {}
    for name, wanted, found in (
        ("llm", config.text_config, core.language_model.config),
        ("vision_tower", config.vision_config, core.vision_tower.config),
    ):
        for field in SIZES:
            asked, has = getattr(wanted, field, None), getattr(found, field, None)
            if asked != has:
                raise UserError(f"{origin[name]} does not fit {path}: its {field} is {has}, and {asked} is needed.")


def check_processor_fits(path: str, processor: LlavaSPProcessor, config: LlavaSPConfig) -> None:
    """Checks that images are prepared in the size and on the grids that a model takes.

    Args:
        path: The checkpoint of both, for messages.
        processor: The processor.
        config: The model's configuration.

    Raises:
        UserError: They are not.
    """
    images, side = processor.image_processor, config.vision_config.image_size
    grids = images.image_grid_pinpoints if images.image_aspect_ratio == "anyres" else None
    if grids != config.image_grid_pinpoints:
        raise UserError(f"The processor of {path} has other grids than the model (image_grid_pinpoints).")
    lengths = [value for size in (images.size, images.crop_size) for value in dict(size or {}).values()]
    # Within bounds before an image is tried, for a file may ask for any size.
    bounded = all(value is None or (isinstance(value, int) and 1 <= value <= 4 * side) for value in lengths)
    made = []
    if bounded and not images.do_pad:
        with explained("the processor", path):
            tried = images([Image.new("RGB", (2 * side, side)), Image.new("RGB", (side, 2 * side))])
            made = [tuple(np.shape(views)[-2:]) for views in tried["pixel_values"]]
    if set(made) != {(side, side)}:
        raise UserError(
            f"The processor of {path} does not make images of {side} x {side} pixels, as the model takes them: see its "
            "size, crop_size, do_resize, do_center_crop and do_pad."
        )


def model_type(path: str) -> str:
    """Returns the model type in the `config.json` of a folder or Hub repository.

    Raises:
        UserError: There is none.
    """
    with explained("a checkpoint", path):
        found = cached_file(path, "config.json")
    if found is None:
        raise UserError(f"{path} holds no config.json, so it is no checkpoint.")
    return str(read_json_object(found).get("model_type", "unknown"))
