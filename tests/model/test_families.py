"""LLMs of other families as parts: their vocabulary, tied embeddings, padding and end tokens, and where LoRA goes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from llava_sp import LlavaSPForCausalLM
from llava_sp.model import loading, parts
from llava_sp.model.trainable import add_lora, lora_targets, set_trainable, trainable_parameter_groups
from llava_sp.utils.errors import UserError
from tests.families import LLMS, QWEN_SPARE_ROWS, make_llm

TINY = {"sfe_channels": 8}
LLAMA_TARGETS = (
    r"^model\.language_model\.(?:.*\.)?(?:down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)$"  # as QLoRA, LLaVA
)


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("llms")
    return {name: make_llm(folder / name, name) for name in LLMS}


def build(llm: Path, tower: Path) -> tuple[LlavaSPForCausalLM, object]:
    return loading.build(str(llm), str(tower), overrides=TINY)


def is_tied(model: torch.nn.Module) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", LLMS)
def test_text_alone_is_what_the_llm_makes_of_it(
    name: str, llms: dict[str, Path], tiny_parts: tuple[Path, Path]
) -> None:
    """In its own vocabulary; rows without a token never win, nor does `<image>`."""
    llm = AutoModelForCausalLM.from_pretrained(llms[name])
    own = len(AutoTokenizer.from_pretrained(llms[name]))
    model, processor = build(llms[name], tiny_parts[1])
    config = model.config
    assert config.llm_vocab_size == own == config.image_token_id
    assert len(processor.tokenizer) == own + 1
    rows = config.text_config.vocab_size
    assert rows == (own + QWEN_SPARE_ROWS if "qwen" in name else -(-(own + 1) // 64) * 64)
    ids = torch.randint(5, own, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        torch.testing.assert_close(logits[..., :own], llm(input_ids=ids).logits[..., :own])
    assert logits.shape[-1] == rows
    assert (logits[..., own:] == torch.finfo(logits.dtype).min).all()


@pytest.mark.parametrize("name", ["llama_3_tied", "qwen2_tied", "qwen2"])
def test_tied_embeddings_stay_tied_and_others_apart(
    name: str, llms: dict[str, Path], tiny_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    tied = name.endswith("tied")
    model, processor = build(llms[name], tiny_parts[1])
    assert is_tied(model) == tied
    assert sum(map(len, trainable_parameter_groups(model).values())) == len(list(model.parameters()))

    set_trainable(model, ["projector", "llm"])
    loading.save(model, processor, tmp_path / "full", stage="finetune")
    loaded, _ = loading.load(tmp_path / "full")
    assert is_tied(loaded) == tied
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)

    tuned = add_lora(loaded, rank=2, alpha=4, dropout=0.0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
    loading.save(tuned, processor, tmp_path / "lora", stage="finetune_lora")
    merged, _ = loading.load(tmp_path / "lora")
    assert is_tied(merged) == tied
    expected = tuned(input_ids=ids).logits
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)

    merged.resize_token_embeddings(640, mean_resizing=False)
    assert is_tied(merged) == tied
    assert merged.get_output_embeddings().weight.shape[0] == 640


def test_lora_goes_to_every_linear_layer_of_the_llm(llms: dict[str, Path], tiny_parts: tuple[Path, Path]) -> None:
    for name in ("llama_3", "mistral", "qwen2"):
        assert lora_targets(build(llms[name], tiny_parts[1])[0]) == LLAMA_TARGETS
    phi, _ = build(llms["phi3"], tiny_parts[1])
    tuned = trainable_parameter_groups(add_lora(phi, rank=2, alpha=4, dropout=0.0))["lora"]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, _ in tuned} == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj",
    }  # fmt: skip
    assert all(".language_model." in name for name, _ in tuned)


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        ("llama_3", "<|finetune_right_pad_id|>"),
        ("llama_3_base", "<|reserved_special_token_0|>"),
        ("mistral", "<unk>"),
        ("qwen2", "<|endoftext|>"),
    ],
)
def test_padding_is_the_familys(name: str, padding: str, llms: dict[str, Path]) -> None:
    tokenizer = parts.load_tokenizer(str(llms[name]))
    assert tokenizer.pad_token == padding
    assert tokenizer.padding_side == "left"


def test_without_any_token_to_spare_the_end_token_pads(llms: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PADDING_TOKENS", ())
    assert parts.load_tokenizer(str(llms["llama_3"])).pad_token == "<|eot_id|>"  # noqa: S105 - no password


@pytest.mark.parametrize(("known", "expected"), [(None, [2, 9]), (7, [2, 7, 9]), ([2, 1], [1, 2, 9])])
def test_endings_are_those_of_llm_tokenizer_and_conversation(known, expected) -> None:
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=known))
    parts.set_endings(model, SimpleNamespace(eos_token_id=2, pad_token_id=5), 9)
    assert model.generation_config.eos_token_id == expected
    assert model.generation_config.pad_token_id == 5
    parts.set_endings(model, SimpleNamespace(eos_token_id=2, pad_token_id=5), None)
    assert model.generation_config.eos_token_id == expected


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "finetune_lora"])
def test_endings_are_saved_and_loaded(
    stage: str, llms: dict[str, Path], tiny_parts: tuple[Path, Path], tmp_path: Path
) -> None:
    model, processor = build(llms["qwen2_tied"], tiny_parts[1])
    parts.set_endings(model, processor.tokenizer, 300)
    ends = model.generation_config.eos_token_id
    if stage == "finetune_lora":
        model = add_lora(model, rank=2, alpha=4, dropout=0.0)
    else:
        set_trainable(model, ["projector", "llm"] if stage == "finetune" else ["projector"])
    loading.save(model, processor, tmp_path, stage=stage)
    loaded, processor = loading.load(tmp_path)
    assert 300 in ends
    assert loaded.generation_config.eos_token_id == ends
    assert loaded.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_llms_whose_head_is_more_than_a_matrix_are_refused() -> None:
    def llm(**fields: float) -> LlamaForCausalLM:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes, **fields))

    with pytest.raises(UserError, match=r"'llama' are not supported.*final_logit_softcapping"):
        parts.assemble(None, None, llm(final_logit_softcapping=30.0))
    biased = llm()
    biased.lm_head = torch.nn.Linear(8, 16)
    with pytest.raises(UserError, match="has a bias"):
        parts.assemble(None, None, biased)
