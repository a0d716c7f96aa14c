"""YAML files and flags are one set of names, later ones win, and mistakes are told in plain words."""

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from llava_sp.model.card import Card
from llava_sp.train import command_line
from llava_sp.train.command_line import build_arguments, collect, complete
from llava_sp.train.yaml_files import read_yaml
from llava_sp.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"

LLAVA_PRETRAIN = """
--model_name_or_path lmsys/vicuna-13b-v1.5 --version plain --data_path blip.json --image_folder images
--vision_tower openai/clip-vit-large-patch14-336 --mm_projector_type mlp2x_gelu --tune_mm_mlp_adapter True
--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True --output_dir out
--num_train_epochs 1 --per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
--evaluation_strategy no --save_strategy steps --save_steps 24000 --save_total_limit 1 --learning_rate 1e-3
--weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --tf32 True --model_max_length 2048
--gradient_checkpointing True --dataloader_num_workers 4 --lazy_preprocess True --report_to none
""".split()

LLAVA_LORA = """
--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --model_name_or_path lmsys/vicuna-13b-v1.5
--version v1 --data_path mix.json --image_folder data --vision_tower openai/clip-vit-large-patch14-336
--pretrain_mm_mlp_adapter checkpoints/pretrain/mm_projector.bin --mm_projector_type mlp2x_gelu
--mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --image_aspect_ratio pad
--group_by_modality_length True --bf16 True --output_dir out --num_train_epochs 1 --per_device_train_batch_size 16
--gradient_accumulation_steps 1 --evaluation_strategy no --learning_rate 2e-4 --warmup_ratio=0.03 --tf32 True
--gradient_checkpointing True --lazy_preprocess True --bits 16 --mm_patch_merge_type flat --lora_dropout 0.1
""".split()


def parse(argv: list[str], ranks: int = 1) -> Any:
    given = collect(argv)
    return build_arguments(given, complete(given, ranks=ranks))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_every_llava_pretrain_flag_is_understood() -> None:
    run = parse(LLAVA_PRETRAIN, ranks=8)
    assert run.model.stage == "pretrain"
    assert run.model.mm_vision_select_layer == -2
    assert run.training.warmup_steps == 0.03
    assert run.training.eval_strategy.value == "no"
    assert run.training.learning_rate == 1e-3
    assert run.batch_plan.global_batch == 256
    assert run.training.gradient_checkpointing_kwargs == {"use_reentrant": False}


def test_every_llava_lora_flag_is_understood() -> None:
    run = parse(LLAVA_LORA, ranks=8)
    assert run.model.stage == "finetune_lora"
    assert (run.model.lora_r, run.model.lora_alpha, run.model.lora_dropout) == (128, 256, 0.1)
    assert run.model.init_from == "checkpoints/pretrain"
    assert run.training.mm_projector_lr == 2e-5
    assert run.training.group_by_modality_length
    assert run.training.warmup_steps == 0.03


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_yaml_is_understood(path: Path) -> None:
    given = collect([str(path), "--output_dir", "out", *(["--lora_enable"] if path.stem == "small_gpu" else [])])
    given.pop("deepspeed", None)
    run = build_arguments(given, complete(given, ranks=2))
    assert run.batch_plan.ranks == 2


@pytest.mark.parametrize("stage", ["pretrain", "finetune_lora", "finetune"])
def test_the_recipes_are_the_papers(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    run = parse([f"configs/train/{stage}.yaml", "--use_cpu"], ranks=8)
    assert run.model.stage == stage
    assert run.batch_plan.global_batch == (256 if stage == "pretrain" else 128)
    assert run.training.learning_rate == {"pretrain": 1e-3, "finetune_lora": 2e-4, "finetune": 2e-5}[stage]
    assert run.training.mm_projector_lr == (2e-5 if stage == "finetune_lora" else None)
    assert run.model.version == ("plain" if stage == "pretrain" else "v1")
    assert run.data.image_aspect_ratio == ("square" if stage == "pretrain" else "pad")
    assert (run.training.warmup_steps, run.training.weight_decay) == (0.03, 0.0)
    assert run.training.lr_scheduler_type.value == "cosine"
    assert run.training.model_max_length == 2048
    if stage == "finetune_lora":
        assert (run.model.lora_r, run.model.lora_alpha, run.model.lora_dropout) == (128, 256, 0.05)


@pytest.mark.parametrize("stage", ["pretrain", "finetune_lora"])
def test_the_recipe_of_a_small_gpu_keeps_the_global_batch(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(CONFIGS.parent)
    files = [f"configs/train/{name}.yaml" for name in (stage, "small_gpu")]
    run = parse([*files, "--use_cpu"], ranks=1)
    assert run.model.stage == stage
    assert (run.model.bits, run.model.quant_type, run.model.double_quant) == (4, "nf4", True)
    assert run.training.deepspeed is None
    assert run.batch_plan.accumulation == run.batch_plan.global_batch == (256 if stage == "pretrain" else 128)


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (["--bits", "5"], "--bits 5: a weight of the LLM can have 16 bits, 8 or 4"),
        (["--bits", "4"], "cannot be tuned in full; give --lora_enable"),
        (["--bits", "8", "--lora_enable", "--deepspeed", str(CONFIGS / "zero3.json")], "8 with ZeRO-3 .*zero2.json"),
    ],
)
def test_what_quantised_weights_cannot_do_is_told(flags: list[str], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        complete(collect(["--output_dir", "out", "--use_cpu", *flags]), ranks=1)


def test_a_missing_bitsandbytes_is_told_before_anything_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[bitsandbytes\]'"):
        complete(collect(["--output_dir", "out", "--use_cpu", "--bits", "4", "--lora_enable"]), ranks=1)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("zero*.json")), ids=lambda path: path.stem)
def test_gradients_are_accumulated_in_fp32_also_of_weights_in_bf16(path: Path) -> None:
    config = pytest.importorskip("deepspeed.runtime.config").DeepSpeedConfig
    given = {name: value for name, value in json.loads(path.read_text()).items() if value != "auto"}
    given.update(train_batch_size=8, bf16={"enabled": True}, fp16={"enabled": False}, gradient_accumulation_steps=4)
    zero = {name: value for name, value in given["zero_optimization"].items() if value != "auto"}
    assert config({**given, "zero_optimization": zero}).grad_accum_dtype == "fp32"


@pytest.mark.parametrize(
    "path",
    sorted([*(CONFIGS / "models").glob("*.yaml"), *(CONFIGS / "ablations").glob("*.yaml")]),
    ids=lambda p: p.stem,
)
def test_models_and_ablations_lie_over_a_recipe(path: Path) -> None:
    from llava_sp.model.variants import variant_fields

    given = collect([str(CONFIGS / "train" / "pretrain.yaml"), str(path)])
    assert given["learning_rate"] == 1e-3
    assert variant_fields(given["variant"])


@pytest.mark.parametrize("path", sorted((CONFIGS / "models").glob("*.yaml")), ids=lambda p: p.stem)
def test_captions_are_plain_and_stage_2_speaks_as_the_llm_does(path: Path) -> None:
    from llava_sp.data.conversation import get_template

    def version(stage: str, *flags: str) -> str:
        given = collect([str(CONFIGS / "train" / f"{stage}.yaml"), str(path), *flags])
        given.pop("deepspeed")
        complete(given, ranks=1)
        return given["version"]

    conversation = read_yaml(str(path)).get("conversation", "v1")
    assert get_template(conversation).name == conversation
    assert version("pretrain") == "plain"
    assert version("finetune_lora") == version("finetune") == conversation
    assert version("finetune", "--version", "v0") == version("pretrain", "--version", "v0") == "v0"


@pytest.mark.parametrize(
    ("template", "arguments", "flags", "expected"),
    [
        ("plain", {"conversation": "qwen2"}, [], "qwen2"),
        ("plain", {"conversation": "qwen2"}, ["--conversation", "llama_3"], "llama_3"),
        ("plain", {"conversation": "qwen2"}, ["--version", "v0"], "v0"),
        ("plain", {"conversation": "qwen2"}, ["--tune_mm_mlp_adapter"], "plain"),
        ("plain", {}, [], "v1"),
        ("llama_2", {}, [], "llama_2"),
    ],
)
def test_stage_2_speaks_as_the_checkpoint_that_it_starts_from(
    template: str, arguments: dict[str, str], flags: list[str], expected: str, tmp_path: Path
) -> None:
    Card("full", {}, "pretrain", template, {}, details={"arguments": arguments}).write(tmp_path)
    assert parse(["--output_dir", "out", "--init_from", str(tmp_path), *flags]).model.version == expected


def test_a_start_on_the_hub_is_followed_like_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Card("adapter", {"model": "me/base"}, "finetune_lora", "qwen2", {}).write(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 5, "lora_dropout": 0.25}')
    asked = []

    def fetch(name: str, file: str, **lenient: bool) -> str | None:
        asked.append(name)
        return str(tmp_path / file) if (tmp_path / file).exists() else None

    monkeypatch.setattr(command_line, "cached_file", fetch)
    run = parse(["--output_dir", "out", "--lora_enable", "--init_from", "me/stage1"])
    assert set(asked) == {"me/stage1"}
    assert (run.model.version, run.model.lora_r, run.model.lora_alpha, run.model.lora_dropout) == ("qwen2", 3, 5, 0.25)


@pytest.mark.parametrize(
    ("template", "arguments", "culprit"),
    [("plain", 7, ""), ("plain", {"conversation": ["v1"]}, r"template \"\['v1'\]\""), (["v1"], {}, r"\['v1'\]")],
)
def test_an_odd_card_of_the_start_is_told(template: Any, arguments: Any, culprit: str, tmp_path: Path) -> None:
    Card("full", {}, "pretrain", template, {}, details={"arguments": arguments}).write(tmp_path)
    with pytest.raises(UserError, match=culprit) if culprit else nullcontext():
        parse(["--output_dir", "out", "--init_from", str(tmp_path)])


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", "7"), ("adapter_config.json", '["r"]'), ("adapter_config.json", '{"r": "64"}')],
)
def test_an_odd_file_of_the_start_is_told(file: str, content: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=r"lora_r|\.json holds no JSON object"):
        parse(["--output_dir", "out", "--lora_enable", "--init_from", str(tmp_path)])


@pytest.mark.parametrize("content", ["[]", '{"zero_optimization": 2}'])
def test_an_odd_deepspeed_file_is_told(content: str, tmp_path: Path) -> None:
    path = write(tmp_path / "zero.json", content)
    with pytest.raises(UserError, match=r"zero\.json"):
        parse(["--output_dir", "out", "--deepspeed", path, "--eval_benchmarks", "pope"])


def test_unknown_flags_suggest_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"--lerning_rate; did you mean --learning_rate\?"):
        collect(["--lerning_rate", "1"])


def test_a_value_of_the_wrong_type_is_named() -> None:
    with pytest.raises(UserError, match=r"--lora_r.*invalid int value: 'many'"):
        collect(["--lora_r", "many"])


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ("--bits 4", "bits 4"),
        ("--mm_projector_type linear", "mm_projector_type linear"),
        ("--mm_use_im_start_end True", "mm_use_im_start_end True"),
        ("--mm_patch_merge_type spatial", "spatial is about several tiles; give --image_aspect_ratio anyres"),
        ("--image_aspect_ratio pad --image_grid_pinpoints [(336,672)]", "give --image_aspect_ratio anyres"),
        ("--image_aspect_ratio anyres --image_grid_pinpoints 336x672", "336x672: a list of sizes"),
        ("--image_aspect_ratio anyres --image_grid_pinpoints (336,672)", "a list of sizes"),
        ("--freeze_mm_mlp_adapter True", "freeze_mm_mlp_adapter"),
        ("--tune_mm_mlp_adapter True --lora_enable True", "contradicts --lora_enable"),
        ("--version vicuna_v9", "no conversation template 'vicuna_v9'"),
        ("--lora_r 0", "lora_r 0: a number from 1 is needed"),
        ("--lora_dropout 2", r"lora_dropout 2\.0: a number from 0 to below 1"),
        ("--learning_rate -1", "learning_rate -1"),
        ("--learning_rate nan", "learning_rate nan"),
        ("--seed -1", "seed -1"),
        ("--label_smoothing_factor 0.1", r"label_smoothing_factor 0\.1: only 0\.0 is supported"),
        ("--warmup_ratio 3", "warmup_ratio 3"),
        ("--evaluation_strategy steps", "eval_data_path"),
        ("--load_best_model_at_end", "load_best_model_at_end"),
        ("--metric_for_best_model loss", "--metric_for_best_model loss is not supported"),
        ("--save_strategy best", "--save_strategy best is not supported"),
        ("--lr_scheduler_type reduce_lr_on_plateau", "needs a metric_for_best_model"),
        ("--save_only_model True", "could not continue from such a checkpoint"),
        ("--save_on_each_node True", "must share the output folder"),
        ("--push_to_hub True", "convert to-hub"),
        ("--ignore_data_skip True", "would not continue with the samples"),
        ("--auto_find_batch_size True", "the batch is planned before the run"),
        ("--train_sampling_strategy group_by_length", "--group_by_modality_length"),
        ("--deepspeed nowhere.json", "nowhere.json"),
        ("--report_to carrier_pigeon", "carrier_pigeon: choose among none, wandb, tensorboard"),
        ("--save_strategy sometimes", "sometimes"),
        ("--dataloader_prefetch_factor 2 --dataloader_num_workers 0", "prefetch_factor"),
        (
            f"--per_device_train_batch_size {10**4000} --global_batch_size 7",
            "per_device_train_batch_size: .* 18 digits",
        ),
        ("--accelerator_config nowhere.json", "nowhere.json"),
        ('--accelerator_config {"spilt_batches":1}', "spilt_batches"),
        ("--image_aspect_ratio anyres --image_grid_pinpoints [(1e999,336)]", "a list of sizes"),
        ("--image_aspect_ratio anyres --image_grid_pinpoints " + "[" * 3000, "a list of sizes"),
        ("--eval_benchmark_steps nan", "eval_benchmark_steps must be above 0"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(flags: str, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        parse(["--output_dir", "out", *flags.split()])


def test_the_output_folder_is_needed() -> None:
    with pytest.raises(UserError, match="--output_dir"):
        parse([])


def test_llavas_projector_file_leads_to_a_conversion(tmp_path: Path) -> None:
    file = tmp_path / "mm_projector.bin"
    file.touch()
    with pytest.raises(UserError, match=r"llava_sp\.convert official"):
        parse(["--output_dir", "out", "--pretrain_mm_mlp_adapter", str(file)])


def test_llavas_name_of_the_start_wins_over_a_yaml(tmp_path: Path) -> None:
    recipe = write(tmp_path / "a.yaml", "init_from: checkpoints/pretrain\noutput_dir: out\n")
    assert parse([recipe, "--pretrain_mm_mlp_adapter", "mine/mm_projector.bin"]).model.init_from == "mine"
    with pytest.raises(UserError, match="differ; give one"):
        parse([recipe, "--pretrain_mm_mlp_adapter", "mine", "--init_from", "another"])


@pytest.mark.parametrize("none", ["none", ""])
def test_deepspeed_can_be_switched_off(tmp_path: Path, none: str) -> None:
    recipe = write(tmp_path / "a.yaml", f"deepspeed: {CONFIGS / 'zero2.json'}\noutput_dir: out\n")
    given = collect([recipe, "--deepspeed", none])
    complete(given, ranks=1)
    assert "deepspeed" not in given


def test_flags_without_effect_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse("--output_dir out --mm_use_im_patch_token True --save_safetensors True --overwrite_output_dir".split())
    for name in ("mm_use_im_patch_token", "save_safetensors", "overwrite_output_dir"):
        assert name in caplog.text


def test_held_out_data_is_evaluated_without_being_told_when() -> None:
    run = parse("--output_dir out --eval_data_path held_out.json".split())
    assert run.training.eval_strategy.value == "steps"
    assert run.training.eval_steps == 0.1


def test_an_evaluation_takes_as_many_samples_at_a_time_as_the_training() -> None:
    assert parse("--output_dir out --per_device_train_batch_size 3".split()).training.per_device_eval_batch_size == 3
    given = "--output_dir out --per_device_train_batch_size 3 --per_device_eval_batch_size 5"
    assert parse(given.split()).training.per_device_eval_batch_size == 5


def test_weights_are_not_uploaded_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("WANDB_LOG_MODEL", "checkpoint")
    with pytest.raises(UserError, match=r"WANDB_LOG_MODEL is set: .* to-hub"):
        parse("--output_dir out --report_to wandb".split())


@pytest.mark.parametrize("flags", [["--per_device_train_batch_size=--"], ["{folder}/run.yaml"]])
def test_two_dashes_are_no_value(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("per_device_train_batch_size: --\n")
    with pytest.raises(UserError, match="--per_device_train_batch_size has no value, but '--'"):
        collect([flag.format(folder=tmp_path) for flag in flags])
