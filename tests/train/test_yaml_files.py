"""YAML files lie over each other and under the flags, and what is wrong in one is told by its name."""

from pathlib import Path

import pytest

from llava_sp.train.command_line import collect
from llava_sp.utils.errors import UserError
from tests.train.test_command_line import parse, write


def test_later_yaml_and_flags_win(tmp_path: Path) -> None:
    first = write(tmp_path / "first.yaml", "learning_rate: 1e-3\nlora_r: 8\nvariant: none\nseed: 3\n")
    second = write(tmp_path / "second.yaml", "lora_r: 16\nvariant: null\n")
    given = collect([first, second, "--learning_rate", "5e-4"])
    assert given == {"learning_rate": 5e-4, "lora_r": 16, "seed": 3}


def test_lists_and_switches_read_the_same_from_both(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml", "sfe_sides: [8, 16, 24]\ndfi_kernels: []\nlora_enable: true\nspatial_bias: false\n"
    )
    flags = "--sfe_sides 8 16 24 --dfi_kernels --lora_enable --spatial_bias False".split()
    assert collect([path]) == collect(flags)
    assert collect(flags) == {
        "sfe_sides": [8, 16, 24], "dfi_kernels": [], "lora_enable": True, "spatial_bias": False,
    }  # fmt: skip


def test_an_explicit_accumulation_wins_over_the_global_batch_of_a_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "global_batch_size: 128\nper_device_train_batch_size: 4\noutput_dir: out\n")
    run = parse([path, "--gradient_accumulation_steps", "3"], ranks=2)
    assert run.batch_plan.global_batch == 24


def test_unknown_yaml_keys_name_their_file(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "lora_rnk: 4\n")
    with pytest.raises(UserError, match=r"mine\.yaml: unknown argument --lora_rnk"):
        collect([path])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n"])
def test_a_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"bad\.yaml"):
        collect([write(tmp_path / "bad.yaml", text)])


def test_a_value_in_a_yaml_is_never_taken_for_a_flag(tmp_path: Path) -> None:
    assert collect([write(tmp_path / "a.yaml", "run_name: --lora_enable\nadam_epsilon: -1e-3\n")]) == {
        "run_name": "--lora_enable",
        "adam_epsilon": -1e-3,
    }


def test_a_yaml_may_refer_to_a_value_but_to_no_list(tmp_path: Path) -> None:
    assert collect([write(tmp_path / "a.yaml", "seed: &seed 3\ndata_seed: *seed\n")]) == {"seed": 3, "data_seed": 3}
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]  # stands for 9 ** 10 numbers
    for bomb in ("\n".join(lines), "sfe_sides: &a [*a]", "accelerator_config: &a {b: *a}"):
        with pytest.raises(UserError, match="refers to a list or a mapping"):
            collect([write(tmp_path / "a.yaml", bomb)])


@pytest.mark.parametrize(
    "text",
    [
        "seed: 2001-13-45",
        "seed: " + "9" * 5000,
        "seed: !!bool x",
        "seed: !!int ''",
        "[" * 3000,
        "seed: !!python/object/apply:os.getcwd []",
        "accelerator_config: {2001-01-01: 1}",
        "accelerator_config: {a: 2001-01-01}",
        "help: true",
    ],
)
def test_an_odd_yaml_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        collect([write(tmp_path / "odd.yaml", text)])


def test_a_yaml_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("output_dir: é".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml is no text in UTF-8"):
        collect([str(tmp_path / "latin.yaml")])


def test_a_missing_yaml_is_named() -> None:
    with pytest.raises(UserError, match=r"Cannot read the configuration nowhere\.yaml"):
        collect(["nowhere.yaml"])


def test_a_yaml_after_a_flag_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "late.yaml", "seed: 3\n")
    with pytest.raises(UserError, match=r"late\.yaml comes after a flag; YAML files come first"):
        collect(["--seed", "1", path])
