"""What ZeRO has split among ranks is split anew as if so many ranks had written it, and nothing else is touched."""

import hashlib
import math
import random
import shutil
from collections import namedtuple
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_sp.train.elastic import REPARTITIONED, repartition, reseed
from llava_sp.utils.errors import UserError

GROUPS = [{"a": (3, 5), "b": (7,), "c": (1,)}, {"d": (2, 2, 2), "e": (11,), "f": (6, 5)}, {"g": (1,)}]
"""Shapes of the parameters of each group."""

STATES = ("weights", "exp_avg", "exp_avg_sq")
SUB_GROUP = 9
"""Elements after which stage 3 begins another flat tensor, where it does so."""

Kind = namedtuple("Kind", "stage sub_group")
KINDS = {"ZeRO-2": Kind(2, math.inf), "ZeRO-3": Kind(3, math.inf), "ZeRO-3 in pieces": Kind(3, SUB_GROUP)}


def values(group: int, what: str) -> list[torch.Tensor]:
    """A flat tensor for each parameter of a group; no two elements of a state are alike."""
    sizes = [math.prod(shape) for shape in GROUPS[group].values()]
    start = 1000 * group + 100 * STATES.index(what)
    return list(torch.arange(start + 1.0, start + 1 + sum(sizes)).split(sizes))


def rows(tensor: torch.Tensor, ranks: int, multiple: int) -> torch.Tensor:
    """What each rank holds of a flat tensor, a row each, filled up with zeros."""
    padded = torch.cat([tensor, torch.zeros(-len(tensor) % (ranks * multiple))])
    return padded.view(ranks, -1)


def flats_of(kind: Kind, group: int, what: str, rank: int, ranks: int) -> list[torch.Tensor]:
    """The flat tensors of a group that a rank holds."""
    if kind.stage == 2:
        return [rows(torch.cat(values(group, what)), ranks, 2)[rank]]
    shares = [rows(value, ranks, 1)[rank] for value in values(group, what)]
    flats: list[list[torch.Tensor]] = [[]]
    for share in shares:
        flats[-1].append(share)
        if sum(map(len, flats[-1])) >= kind.sub_group:
            flats.append([])
    return [torch.cat(flat) for flat in flats if flat]


def zero_state(kind: Kind, rank: int, ranks: int) -> dict[str, Any]:
    """What ZeRO writes for a rank."""
    weights, moments, groups, paddings = [], {}, [], []
    for group, shapes in enumerate(GROUPS):
        flats = {what: flats_of(kind, group, what, rank, ranks) for what in STATES}
        numbers = list(range(len(weights), len(weights) + len(flats["weights"])))
        for place, number in enumerate(numbers):
            moments[number] = {what: flats[what][place] for what in STATES[1:]} | {"step": torch.tensor(5.0)}
        if kind.stage == 2:  # which writes the weights without the zeros at the end
            share, length = len(flats["weights"][0]), sum(map(math.prod, shapes.values()))
            paddings.append(min(max((rank + 1) * share - length, 0), share))
            flats["weights"] = [flats["weights"][0][: share - paddings[-1]]]
        weights += flats["weights"]
        groups.append({"lr": 0.1 * (group + 1), "name": str(group), "params": numbers})
    optimizer = {"state": moments, "param_groups": groups}
    shared = {"overflow": False, "partition_count": [ranks] * 3}
    if kind.stage == 2:
        own = {"base_optimizer_state": optimizer, "single_partition_of_fp32_groups": weights, "clip_grad": 1.0}
        return {**shared, **own, "group_paddings": paddings, "param_slice_mappings": []}
    return {**shared, "optimizer_state_dict": optimizer, "fp32_flat_groups": weights}


def shapes_of(kind: Kind, ranks: int) -> list[dict[str, torch.Size]]:
    """The shapes that the engine writes for each flat tensor."""
    found = []
    for shapes in GROUPS:
        flats: list[dict[str, torch.Size]] = [{}]
        for name, shape in shapes.items():
            flats[-1][name] = torch.Size(shape)
            held = sum(-(-math.prod(size) // ranks) for size in flats[-1].values())
            if kind.stage == 3 and held >= kind.sub_group:
                flats.append({})
        found += [flat for flat in flats if flat]
    return found


def write(folder: Path, kind: Kind, ranks: int) -> Path:
    """Writes a checkpoint of so many ranks."""
    tag = folder / "global_step5"
    tag.mkdir(parents=True)
    (folder / "latest").write_text(tag.name)
    (folder / "trainer_state.json").write_text("{}")
    torch.save({"last_epoch": 5}, folder / "scheduler.pt")
    settings = {"stage": kind.stage} | ({"sub_group_size": SUB_GROUP} if kind.sub_group == SUB_GROUP else {})
    engine = {"module": {"w": torch.ones(2)}, "dp_world_size": ranks, "param_shapes": shapes_of(kind, ranks)}
    for rank in range(ranks):
        own = f"zero_pp_rank_{rank}_" if kind.stage == 3 else ""
        torch.save({**engine, "global_steps": 5}, tag / f"{own}mp_rank_00_model_states.pt")
        state = {"optimizer_state_dict": zero_state(kind, rank, ranks), "ds_config": {"zero_optimization": settings}}
        torch.save(state, tag / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def read(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint by file."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        file.relative_to(folder).as_posix(): torch.load(file) if file.suffix == ".pt" else file.read_text()
        for file in files
    }


def assert_same(found: Any, expected: Any, where: str = "") -> None:
    """Compares values, and flat tensors up to the zeros at their end."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, where
        size = expected.numel()
        assert torch.equal(found.view(-1)[:size], expected.view(-1)), where
        assert not found.view(-1)[size:].any(), where
    elif isinstance(expected, dict):
        assert set(found) == set(expected), where
        for name in expected:
            assert_same(found[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, list):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}/{number}")
    else:
        assert found == expected, where


def hashes(folder: Path) -> dict[Path, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.mark.parametrize(("before", "after"), [(a, b) for a, b in product((1, 2, 3, 4, 9), repeat=2) if a != b])
def test_the_state_is_that_of_as_many_ranks(tmp_path: Path, kind: Kind, before: int, after: int) -> None:
    source = write(tmp_path / "checkpoint-5", kind, before)
    untouched = hashes(source)
    result = repartition(source, ranks=after, into=tmp_path / REPARTITIONED)
    assert result == tmp_path / REPARTITIONED
    assert hashes(source) == untouched
    found, expected = read(result), read(write(tmp_path / "expected", kind, after))
    for name, content in expected.items():
        if name.endswith("model_states.pt"):  # the shapes are for other tools
            del content["param_shapes"], found[name]["param_shapes"]
        for layout in ("group_paddings", "param_slice_mappings", "partition_count"):
            if name.endswith("optim_states.pt"):
                content["optimizer_state_dict"].pop(layout, None)
    assert_same(found, expected)


def test_every_flat_tensor_counts_its_own_steps(tmp_path: Path) -> None:
    """PyTorch's optimizers count in place: a count that several had in common would run ahead."""
    source = write(tmp_path / "checkpoint-5", KINDS["ZeRO-3 in pieces"], 4)
    result = repartition(source, ranks=1, into=tmp_path / REPARTITIONED)
    (part,) = result.glob("*/*optim_states.pt")
    entries = torch.load(part)["optimizer_state_dict"]["optimizer_state_dict"]["state"].values()
    assert len(entries) > len(GROUPS)
    assert len({entry["step"].data_ptr() for entry in entries}) == len(entries)


def test_what_lay_there_is_removed(tmp_path: Path) -> None:
    source = write(tmp_path / "checkpoint-5", KINDS["ZeRO-2"], 4)
    write(tmp_path / REPARTITIONED, KINDS["ZeRO-2"], 9)
    result = repartition(source, ranks=2, into=tmp_path / REPARTITIONED)
    assert len(list(result.glob("*/*optim_states.pt"))) == 2


def spoil(folder: Path, what: str) -> None:
    """Makes a checkpoint one that cannot be split anew."""
    tag = folder / "global_step5"
    parts = sorted(tag.glob("*optim_states.pt"))
    content = torch.load(parts[0])
    state = content["optimizer_state_dict"]
    optimizer = state.get("base_optimizer_state", state.get("optimizer_state_dict"))
    if what == "8 bits":
        for entry in optimizer["state"].values():
            entry["absmax"] = torch.ones(2)
    elif what == "round robin":
        content["ds_config"]["zero_optimization"]["round_robin_gradients"] = True
    elif what == "elastic":
        for name in ("base_optimizer_state", "optimizer_state_dict"):
            state[name] = list(optimizer["state"].values())
    elif what == "another layout":
        entry = optimizer["state"][0]
        entry["exp_avg"] = torch.cat([entry["exp_avg"], torch.zeros(4)])
    elif what == "fewer weights":
        for name in ("single_partition_of_fp32_groups", "fp32_flat_groups"):
            state.get(name, [torch.ones(9)])[0].data = torch.ones(3)
    elif what == "no weights":
        state.pop("single_partition_of_fp32_groups", None)
        state.pop("fp32_flat_groups", None)
    torch.save(content, parts[0])


@pytest.mark.parametrize("what", ["8 bits", "round robin", "elastic", "another layout", "fewer weights", "no weights"])
def test_what_cannot_be_split_is_refused(tmp_path: Path, kind: Kind, what: str) -> None:
    source = write(tmp_path / "checkpoint-5", kind, 2)
    spoil(source, what)
    with pytest.raises(UserError, match=r"global_step5 cannot be split .* Continue on 2 rank.*--init_from .*point-5\."):
        repartition(source, ranks=1, into=tmp_path / REPARTITIONED)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_part_that_is_missing_is_told(tmp_path: Path, kind: Kind) -> None:
    source = write(tmp_path / "checkpoint-5", kind, 3)
    (source / "global_step5" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match=r"global_step5 is not whole.* 2 \*_optim_states"):
        repartition(source, ranks=1, into=tmp_path / REPARTITIONED)


def test_a_part_with_code_is_not_read(tmp_path: Path, kind: Kind) -> None:
    source = write(tmp_path / "checkpoint-5", kind, 3)
    name = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": eval}, source / "global_step5" / name)
    with pytest.raises(UserError, match=f"{name} is not read"):
        repartition(source, ranks=1, into=tmp_path / REPARTITIONED)
    assert not (tmp_path / REPARTITIONED).exists()


def test_a_disk_that_is_too_full_is_told_first(tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "checkpoint-5", kind, 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30, 100))
    with pytest.raises(UserError, match=r"0\.0 GiB free"):
        repartition(source, ranks=1, into=tmp_path / REPARTITIONED)
    assert not (tmp_path / REPARTITIONED).exists()


def test_random_streams_follow_from_seed_step_and_rank() -> None:
    def drawn(*where: int) -> tuple[float, float, float]:
        seed, step, rank = where
        reseed(seed, step=step, rank=rank)
        return torch.rand(()).item(), float(np.random.rand()), random.random()  # noqa: S311

    places = list(product((0, 42), (3, 4), (0, 1)))
    found = [drawn(*place) for place in places]
    assert found == [drawn(*place) for place in places]
    assert len({number for numbers in found for number in numbers}) == 3 * len(places)
