"""What vLLM 0.33 and SGLang 0.5.23 ask of the model and its processor, without either of them.

Names, signatures and the way placeholders are found are those of their sources.
"""

import importlib
import sys
from importlib.metadata import entry_points
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor, CLIPVisionModel, LlamaModel

from llava_sp import LlavaSPForCausalLM, LlavaSPModel
from llava_sp.data.conversation import get_template
from llava_sp.model import loading

SIZES = [(48, 48), (30, 70), (90, 40), (300, 301)]  # height, width
GRIDS = [[48, 96], [96, 48], [96, 96]]


@pytest.fixture(scope="module", params=["pad", "anyres"])
def served(request, tiny_parts, tmp_path_factory):
    """Model and processor as an engine loads them: from a folder, by the Auto classes."""
    folder = tmp_path_factory.mktemp(request.param)
    overrides = {"sfe_channels": 8}
    if request.param == "anyres":
        overrides |= {"image_grid_pinpoints": GRIDS, "patch_merge_type": "spatial_unpad"}
    model, processor = loading.build(*map(str, tiny_parts), overrides=overrides, image_aspect_ratio=request.param)
    loading.save(model, processor, folder, stage="finetune")
    config = AutoConfig.from_pretrained(folder)
    return AutoModel.from_config(config).eval(), AutoProcessor.from_pretrained(folder)


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in SIZES]


def conversation() -> list[dict[str, str]]:
    """A question about each picture."""
    turns = []
    for number, _ in enumerate(SIZES):
        turns += [{"from": "human", "value": f"<image>\nWhat is this, number {number}?"}]
        turns += [{"from": "gpt", "value": "A test."}]
    return turns[:-1]


def test_the_base_model_can_take_an_engines_attention(served):
    model, _ = served
    assert type(model) is LlavaSPModel
    assert model._supports_attention_backend
    assert LlavaSPForCausalLM._supports_attention_backend
    assert type(model.get_decoder()) is LlamaModel
    assert type(model.get_encoder(modality="image")) is CLIPVisionModel
    assert any("q_proj" in name for name in model.tp_plan)  # tensor parallelism


def test_the_processor_counts_as_many_tokens_as_it_makes_and_the_model_fills(served):
    model, processor = served
    counted = processor._get_num_multimodal_tokens(image_sizes=SIZES)
    inputs = processor(text=["<image>"] * len(SIZES), images=pictures(), return_tensors="pt", padding=True)
    made = (inputs["input_ids"] == processor.image_token_id).sum(dim=1).tolist()
    assert counted["num_image_tokens"] == made
    assert counted["num_image_patches"] == [1] * len(SIZES)
    assert len(inputs["pixel_values"]) == len(SIZES)
    images = {name: inputs[name] for name in processor.image_processor.model_input_names if name in inputs}
    features = model.get_image_features(**images, return_dict=True).pooler_output
    assert [len(image) for image in features] == made


def test_replacements_stand_where_the_image_tokens_are(served):
    _, processor = served
    template, tokenizer = get_template("v1"), processor.tokenizer
    text = template.prompt_text(conversation())
    inputs = processor(text=text, images=pictures(), return_text_replacement_offsets=True)
    ids = template.render_prompt(conversation(), tokenizer, processor.image_token_id)
    places = [place for place, token in enumerate(ids) if token == processor.image_token_id]

    [replacements] = inputs["text_replacement_offsets"]
    assert [entry["type"] for entry in replacements] == ["image"] * len(SIZES)
    starts = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert [entry["span"] for entry in replacements] == [starts[place] for place in places]
    # An engine takes the ids of the unexpanded prompt and puts in each place what the replacement's text encodes to.
    for place, entry in reversed(list(zip(places, replacements, strict=True))):
        ids[place : place + 1] = tokenizer.encode(entry["replacement"], add_special_tokens=False)
    assert ids == inputs["input_ids"][0]


class EnginesLinear(nn.Module):
    """What an engine puts in the place of each linear layer: it knows the weights, and nothing else of it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def replace_linear_layers(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, EnginesLinear(child))
        else:
            replace_linear_layers(child)


def test_the_projector_works_with_an_engines_linear_layers(served):
    model, processor = served
    images = processor.image_processor(pictures(), return_tensors="pt")
    expected = model.get_image_features(**images, return_dict=True).pooler_output
    replace_linear_layers(model.multi_modal_projector)
    found = model.get_image_features(**images, return_dict=True).pooler_output
    assert isinstance(model.multi_modal_projector.linear_1, EnginesLinear)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def plugin(group: str):
    [found] = [entry for entry in entry_points(group=group) if entry.name == "llava_sp"]
    return found.load()


def stub(monkeypatch, name: str, **members) -> None:
    """Puts a module of that name, and its parents, where imports find them."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        path = ".".join(parts[:length])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
    for member, value in members.items():
        setattr(sys.modules[name], member, value)


def unused(config) -> torch.Tensor:
    """True for the rows of the vocabulary that must never win."""
    rows = torch.arange(config.text_config.vocab_size)
    return (rows >= config.llm_vocab_size) | (rows == config.image_token_id)


def test_vllm_finds_the_class_by_the_architecture_that_checkpoints_name(checkpoints, monkeypatch):
    config = AutoConfig.from_pretrained(checkpoints["full"])

    class Backend:
        """vLLM's `TransformersMultiModalForCausalLM`, as far as our class needs it."""

        def __init__(self) -> None:
            self.config = config

        def compute_logits(self, hidden_states: torch.Tensor | None) -> torch.Tensor | None:
            return hidden_states

    models: dict[str, str] = {}
    registry = SimpleNamespace(register_model=lambda model_arch, model_cls: models.update({model_arch: model_cls}))
    stub(monkeypatch, "vllm", ModelRegistry=registry)
    stub(monkeypatch, "vllm.model_executor.models.transformers", TransformersMultiModalForCausalLM=Backend)
    register = plugin("vllm.general_plugins")
    register()
    register()  # once in each process, or more
    assert list(models) == config.architectures == ["LlavaSPForCausalLM"]

    module, name = models["LlavaSPForCausalLM"].split(":")
    monkeypatch.delitem(sys.modules, module, raising=False)
    model = getattr(importlib.import_module(module), name)()
    monkeypatch.delitem(sys.modules, module)
    logits = torch.full((3, config.text_config.vocab_size), -5.0)
    logits[:, unused(config)] = 0.0  # what zero rows of the head give
    assert unused(config)[model.compute_logits(logits).argmax(-1)].sum() == 0
    assert (logits[:, ~unused(config)] == -5.0).all()
    assert model.compute_logits(None) is None


def test_sglang_leaves_out_the_same_rows(checkpoints, monkeypatch):
    config = AutoConfig.from_pretrained(checkpoints["full"])
    hooks = {}
    registry = SimpleNamespace(register=lambda target, hook, hook_type: hooks.update({target: (hook, hook_type)}))
    stub(
        monkeypatch,
        "sglang.srt.plugins.hook_registry",
        HookRegistry=registry,
        HookType=SimpleNamespace(AFTER="after"),
    )
    plugin("sglang.srt.plugins")()
    [(target, (hook, kind))] = hooks.items()
    assert target == "sglang.srt.models.transformers.TransformersMultiModalForCausalLM.forward"
    assert kind == "after"

    output = SimpleNamespace(next_token_logits=torch.zeros(3, config.text_config.vocab_size))
    assert hook(output, SimpleNamespace(config=config), None) is None
    assert (output.next_token_logits[:, unused(config)] < -1e30).all()
    assert not output.next_token_logits[:, ~unused(config)].any()
    other = SimpleNamespace(next_token_logits=torch.zeros(3, 1024))
    hook(other, SimpleNamespace(config=AutoConfig.for_model("llama")))
    assert not other.next_token_logits.any()
    hook(SimpleNamespace(hidden_states=None), SimpleNamespace(config=config))  # a rank without a head
