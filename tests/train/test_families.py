"""LLMs of other families, with CLIP and SigLIP towers, through all of it: tuned with LoRA, saved, loaded, asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import pipeline

from llava_sp.data.collator import Collator
from llava_sp.data.conversation import get_template
from llava_sp.eval.inference import GenerationSettings, generate_answers
from llava_sp.eval.questions import Question
from llava_sp.model import loading
from llava_sp.model.trainable import set_trainable
from llava_sp.train import assembly
from llava_sp.train.command_line import build_arguments, collect, complete
from llava_sp.train.run import train
from tests.families import make_llm, make_siglip
from tests.tiny import make_tower

ANSWERS = {"red.png": "A red one.", "blue.png": "Two: blue\nand 12.", None: "No image."}
QUESTION = "What is in the image?"


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return {"clip": make_tower(folder / "clip"), "siglip": make_siglip(folder / "siglip")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images and a question about each, and a question about none."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for number, (image, answer) in enumerate(ANSWERS.items()):
        question = f"<image>\n{QUESTION}" if image else QUESTION
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append({"id": number, "conversations": turns, **({"image": image} if image else {})})
        if image:
            Image.new("RGB", (40, 60), image.removesuffix(".png")).save(folder / image)
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def tune(llm: Path, tower: Path, template: str, data: Path, folder: Path, steps: int) -> tuple[list[float], Path]:
    """Tunes with LoRA by a plain optimizer; returns the losses, and where the checkpoint is."""
    flags = ["--model_name_or_path", str(llm), "--vision_tower", str(tower), "--version", template, "--use_cpu"]
    flags += ["--lora_enable", "--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0", "--sfe_channels", "8"]
    flags += ["--output_dir", str(folder), "--data_path", str(data / "data.json"), "--image_folder", str(data)]
    given = collect(flags)
    run = build_arguments(given, complete(given, ranks=1))
    model, processor = assembly.load_model(run, resume=None)
    dataset = assembly.make_dataset(run.data.data_path, run, processor)
    batch = Collator(processor.tokenizer.pad_token_id)([dataset[number] for number in range(len(dataset))])
    batch.pop("sample_ids")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    loading.save(model, processor, folder, stage="finetune_lora")
    return losses, folder


@pytest.mark.parametrize(
    ("llm", "tower", "template"),
    [
        ("llama_3", "clip", "llama_3"),
        ("llama_3_tied", "siglip", "llava_llama_3"),
        ("llama_3_base", "siglip", "llama_3"),
        ("mistral", "siglip", "mistral"),
        ("mistral_v3", "clip", "mistral_v3"),
        ("qwen2", "siglip", "qwen2"),
        ("qwen2_tied", "clip", "qwen2"),
        ("qwen3", "clip", "v1"),
        ("phi3", "clip", "mistral_instruct"),
    ],
)
def test_tuned_saved_loaded_and_asked(
    llm: str, tower: str, template: str, towers: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    losses, folder = tune(make_llm(tmp_path / "llm", llm), towers[tower], template, data, tmp_path / "out", steps=40)
    assert losses[-1] < 0.1 < losses[0]

    model, processor = loading.load(folder)
    questions = [Question(str(image), QUESTION, image) for image in ANSWERS]
    settings = GenerationSettings(temperature=0, max_new_tokens=30)
    options: dict[str, Any] = {"image_folder": data, "template": get_template(template), "settings": settings}
    for batch_size in (1, 3):
        answers = generate_answers(model, processor, questions, batch_size=batch_size, **options)
        assert {question.image: answer for question, answer in answers} == ANSWERS

    # Also without our own inference, generation stops at the end of the turn.
    end = get_template(template).end_token_id(processor.tokenizer)
    messages = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    chat = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(messages, **chat)
    turns = [{"from": "human", "value": QUESTION}]
    rendered = get_template(template).render_prompt(turns, processor.tokenizer, processor.image_token_id)
    assert inputs["input_ids"][0].tolist() == rendered
    output = model.generate(**inputs, max_new_tokens=30)[0, inputs["input_ids"].shape[1] :].tolist()
    assert output[-1] == end
    assert processor.decode(output, skip_special_tokens=True).strip() == ANSWERS[None]
    messages[0]["content"].insert(0, {"type": "image", "image": str(data / "red.png")})
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    answer = ask(text=messages, max_new_tokens=30, return_full_text=False)[0]["generated_text"]
    assert answer.strip() == ANSWERS["red.png"]


@pytest.mark.parametrize(
    ("name", "llm", "learned"),
    [
        ("mistral_7b", "mistral", "[A red one.</s>]"),
        ("qwen2.5_7b", "qwen2", "[A red one.<|im_end|>]"),
        ("llama_3.1_8b", "llama_3", "[A red one.<|eot_id|>]"),
    ],
)
def test_a_models_yaml_over_each_stages_recipe(
    name: str,
    llm: str,
    learned: str,
    towers: dict[str, Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Captions are plain, and the LLM's own conversation comes in stage 2."""
    monkeypatch.chdir(Path(__file__).parents[2])
    places = {"model_name_or_path": str(make_llm(tmp_path / "llm", llm)), "vision_tower": str(towers["siglip"])}
    local = tmp_path / "local.yaml"
    local.write_text(json.dumps({**places, "deepspeed": None, "sfe_channels": 8}))
    flags = ["--dry_run", "--use_cpu", "--output_dir", str(tmp_path / "out"), "--image_folder", str(data)]
    flags += ["--data_path", str(data / "data.json"), "--check_data", "off"]
    model = ["configs/models/siglip_so400m.yaml", f"configs/models/{name}.yaml", str(local)]

    train(["configs/train/pretrain.yaml", *model, *flags], ranks=1)
    assert "<image>x175[A red one.\n]" in capsys.readouterr().out

    built, processor = loading.build(*places.values(), overrides={"sfe_channels": 8})
    set_trainable(built, ["projector"])
    loading.save(built, processor, tmp_path / "stage_one", stage="pretrain")
    for recipe in ("finetune_lora", "finetune"):
        train([f"configs/train/{recipe}.yaml", *model, "--init_from", str(tmp_path / "stage_one"), *flags], ranks=1)
        assert learned in capsys.readouterr().out
