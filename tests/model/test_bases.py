"""A partial checkpoint knows what it stands on: the same weights anywhere and in any type, and no others."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import llava_sp
from llava_sp.model import loading, trainable
from llava_sp.model.card import CARD_NAME
from llava_sp.model.fingerprint import fingerprint, same_weights
from llava_sp.utils.errors import UserError
from tests.model.test_loading import build, perturb_trainable


@pytest.fixture(scope="module")
def folders(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each partial kind."""
    root = tmp_path_factory.mktemp("bases")
    model, processor = build(tiny_parts)
    trainable.set_trainable(model, ["projector"])
    loading.save(model, processor, root / "projector", stage="pretrain")
    tuned = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
    perturb_trainable(tuned)
    loading.save(tuned, processor, root / "adapter", stage="finetune_lora")
    return {kind: root / kind for kind in ("projector", "adapter")}


def save_llm(folder: Path, tiny_parts: tuple[Path, Path], llm: LlamaForCausalLM, **arguments: str) -> str:
    llm.save_pretrained(folder, **arguments)
    AutoTokenizer.from_pretrained(tiny_parts[0]).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["projector", "adapter"])
def test_the_same_weights_are_known_elsewhere(
    kind: str, folders: dict[str, Path], tiny_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    llm = LlamaForCausalLM.from_pretrained(tiny_parts[0], dtype=torch.bfloat16)
    copy = save_llm(tmp_path / "copy", tiny_parts, llm, max_shard_size="100KB")
    assert (tmp_path / "copy" / "model.safetensors.index.json").exists()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        llava_sp.load(folders[kind], base=copy, dtype=dtype)


@pytest.mark.parametrize("kind", ["projector", "adapter"])
def test_other_weights_of_the_same_shape_are_refused(
    kind: str, folders: dict[str, Path], tiny_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    llm = LlamaForCausalLM.from_pretrained(tiny_parts[0])
    with torch.no_grad():
        for name, weight in llm.named_parameters():
            if "q_proj" in name or "up_proj" in name:
                weight.mul_(1.02)  # a little tuned
    other = save_llm(tmp_path / "other", tiny_parts, llm)
    with pytest.raises(UserError, match=rf"{folders[kind]} was trained with another LLM than that of {other}"):
        llava_sp.load(folders[kind], base=other)
    llava_sp.load(folders[kind], base=other, allow_other_base=True)
    card = json.loads((folders[kind] / CARD_NAME).read_text())
    del card["fingerprint"]
    for file in folders[kind].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CARD_NAME).write_text(json.dumps(card))  # of a version that did not record it
    llava_sp.load(tmp_path, base=other)


@pytest.mark.parametrize("kind", ["projector", "adapter"])
def test_another_size_of_llm_is_told(
    kind: str, folders: dict[str, Path], tiny_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    config = LlamaConfig.from_pretrained(tiny_parts[0], hidden_size=32)
    small = save_llm(tmp_path / "small", tiny_parts, LlamaForCausalLM(config))
    with pytest.raises(UserError, match=rf"{small} does not fit .*{kind}: its hidden_size is 32, and 64 is needed"):
        llava_sp.load(folders[kind], base=small)


def test_a_lora_is_no_longer_its_base(folders: dict[str, Path], tiny_parts: tuple[Path, Path], tmp_path: Path) -> None:
    """What is trained on a merged LoRA stands on that, not on the LLM below it."""
    merged, processor = llava_sp.load(folders["adapter"])
    again = trainable.add_lora(merged, rank=2, alpha=4, dropout=0.0)
    perturb_trainable(again)
    loading.save(again, processor, tmp_path / "second", stage="finetune_lora")
    card = loading.read_card(str(tmp_path / "second"))
    assert card.parts == {"model": str(folders["adapter"])}
    expected = again.merge_and_unload().state_dict()
    found, _ = llava_sp.load(tmp_path / "second")
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(UserError, match="another LLM than that of"):
        llava_sp.load(tmp_path / "second", base=str(folders["projector"]))
    with pytest.raises(UserError, match=f"stands on the model {folders['adapter']}"):
        llava_sp.load(tmp_path / "second", base=str(tiny_parts[0]))


def test_a_fingerprint_tells_weights_whatever_their_type(tiny_parts: tuple[Path, Path]) -> None:
    llm = LlamaForCausalLM.from_pretrained(tiny_parts[0]).model
    exact = fingerprint(llm)
    for dtype in (torch.bfloat16, torch.float16):
        assert same_weights(exact, fingerprint(llm.to(dtype)))
    for weight in llm.layers[1].parameters():
        weight.data *= 1.02
    assert not same_weights(exact, fingerprint(llm))
    assert not same_weights(exact, exact[:-4])
