"""A checkpoint on the Hub, as it lies in the cache: the state and folder of it that are asked for are read."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import hub as transformers_hub

import llava_sp
from llava_sp.eval.provenance import checkpoint_digest
from llava_sp.model import loading, trainable
from tests.model.test_loading import build, perturb_trainable

NAME = "me/tiny"
FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def states(tiny_parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two states of a repository, `main` being the second, and the cache that holds them; each has a subfolder."""
    cache = tmp_path_factory.mktemp("cache")
    repository = cache / f"models--{NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SECOND)
    for commit in (FIRST, SECOND):
        model, processor = build(tiny_parts)
        tuned = trainable.add_lora(model, rank=4, alpha=8, dropout=0.0)
        torch.manual_seed(int(commit[0], 16))
        perturb_trainable(tuned)
        folder = repository / "snapshots" / commit
        loading.save(tuned, processor, folder, stage="finetune_lora")
        perturb_trainable(tuned)
        loading.save(tuned, processor, folder / "step", stage="finetune_lora")
    yield {"cache": cache, "first": repository / "snapshots" / FIRST, "second": repository / "snapshots" / SECOND}
    shutil.rmtree(cache)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("where", "state", "subfolder"),
    [
        ({}, "second", ""),
        ({"revision": FIRST}, "first", ""),
        ({"revision": FIRST, "subfolder": "step"}, "first", "step"),
    ],
)
def test_the_state_that_is_asked_for_is_read(where, state, subfolder, states):
    wanted, _ = loading.load(states[state] / subfolder)
    found = llava_sp.LlavaSPForCausalLM.from_pretrained(NAME, cache_dir=states["cache"], **where)
    assert isinstance(found, llava_sp.LlavaSPForCausalLM)
    assert torch.equal(weights(found), weights(wanted))


def test_the_model_without_its_head_is_completed_too(states):
    wanted, _ = loading.load(states["second"])
    for cls in (llava_sp.LlavaSPModel, AutoModel):
        found = cls.from_pretrained(states["second"])
        assert isinstance(found, llava_sp.LlavaSPModel)
        assert torch.equal(weights(found), weights(wanted.model))


@pytest.mark.parametrize("cls", [llava_sp.LlavaSPForCausalLM, AutoModelForCausalLM, AutoModelForImageTextToText])
@pytest.mark.parametrize("state", ["first", "second"])
def test_a_whole_model_on_the_hub_is_found_by_the_auto_classes_too(cls, state, states, tmp_path, monkeypatch):
    repository = tmp_path / "models--me--whole"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SECOND)
    for name, commit in (("first", FIRST), ("second", SECOND)):
        model, processor = loading.load(states[name])
        loading.save(model, processor, repository / "snapshots" / commit, stage="finetune")
    monkeypatch.setattr(transformers_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = cls.from_pretrained("me/whole", **({"revision": FIRST} if state == "first" else {}))
    assert isinstance(found, llava_sp.LlavaSPForCausalLM)
    assert torch.equal(weights(found), weights(loading.load(states[state])[0]))


def test_scores_tell_the_commit(states, monkeypatch):
    before = checkpoint_digest(NAME)
    monkeypatch.setattr(transformers_hub.constants, "HF_HUB_CACHE", str(states["cache"]))
    assert (before, checkpoint_digest(NAME)) == (None, SECOND)
