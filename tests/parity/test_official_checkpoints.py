"""Imported checkpoints compute what the official implementation computed (recordings in fixtures/official)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava_sp import LlavaSPForCausalLM, LlavaSPProcessor
from llava_sp.constants import IGNORE_INDEX
from llava_sp.convert.official import import_official

OFFICIAL = Path(__file__).parent.parent / "fixtures" / "official"
CHECKPOINTS = ("cropping", "pooling", "tokens3", "cropping_lora")
OFFICIAL_IMAGE_ID = -200
VOCABULARY = 1000
TOLERANCE = 1e-5  # of the relative error ||ours - theirs|| / ||theirs||; both are in single precision


def formula_image(index: int, side: int) -> torch.Tensor:
    """The recorded images are a formula of the position: [3, side, side]."""
    i = torch.arange(side, dtype=torch.float64)
    channels = [
        torch.sin(0.021 * (index + 1) * (c + 1) * i + 0.4 * c)[:, None]
        + torch.cos(0.017 * (index + 2) * (c + 1) * i - 0.3 * index)[None, :]
        for c in range(3)
    ]
    return torch.stack(channels).float()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


class Recording:
    """An imported checkpoint beside what the official implementation computed with it."""

    def __init__(self, name: str, folder: Path) -> None:
        source = OFFICIAL / name
        base = str(source / "base") if (source / "base").exists() else None
        import_official(source, folder, base=base)
        self.model = LlavaSPForCausalLM.from_pretrained(folder).eval()
        self.folder = folder
        self.theirs = load_file(source / "golden.safetensors")
        self.facts = json.loads((source / "golden.json").read_text())
        self.pixels = torch.stack([formula_image(index, self.facts["image_size"]) for index in range(2)])
        self.samples = [self._expand(index) for index in range(3)]

    def _expand(self, index: int) -> tuple[list[int], list[int]]:
        config = self.model.config
        ids, labels = [], []
        columns = (self.theirs[name][index].tolist() for name in ("input_ids", "attention_mask", "labels"))
        for token, seen, label in zip(*columns, strict=True):
            if seen and token == OFFICIAL_IMAGE_ID:
                ids += [config.image_token_id] * config.image_seq_length
                labels += [IGNORE_INDEX] * config.image_seq_length
            elif seen:
                ids.append(token)
                labels.append(label)
        return ids, labels

    def batch(self, rows: list[int], *, left: bool) -> dict[str, torch.Tensor]:
        """The samples `rows`, padded on one side; every row but the third has an image."""
        length = max(len(self.samples[row][0]) for row in rows)
        batch = {
            "input_ids": torch.zeros(len(rows), length, dtype=torch.long),
            "attention_mask": torch.zeros(len(rows), length, dtype=torch.long),
            "labels": torch.full((len(rows), length), IGNORE_INDEX),
        }
        for place, row in enumerate(rows):
            ids, labels = self.samples[row]
            where = slice(length - len(ids), None) if left else slice(None, len(ids))
            batch["input_ids"][place, where] = torch.tensor(ids)
            batch["labels"][place, where] = torch.tensor(labels)
            batch["attention_mask"][place, where] = 1
        return {**batch, "pixel_values": self.pixels[[row for row in rows if row < 2]]}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return Recording(request.param, tmp_path_factory.mktemp(request.param) / "imported")


@torch.no_grad()
def test_visual_tokens(recording):
    tokens = torch.stack(list(recording.model.get_image_features(recording.pixels).pooler_output))
    spatial = recording.facts["num_spatial_tokens"]
    assert relative_error(tokens[:, :spatial], recording.theirs["spatial_tokens"]) <= TOLERANCE
    assert relative_error(tokens[:, spatial::48], recording.theirs["patch_tokens_every_48th"]) <= TOLERANCE


@torch.no_grad()
def test_logits_and_loss(recording):
    batch = recording.batch([0, 1, 2], left=False)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    assert lengths == recording.facts["sequence_lengths_after_splicing"]
    output = recording.model(**batch)
    last = torch.zeros_like(recording.theirs["last_8_logits"])
    for row, length in enumerate(lengths):
        kept = min(8, length)
        last[row, 8 - kept :] = output.logits[row, length - kept : length, :VOCABULARY]
    assert relative_error(last, recording.theirs["last_8_logits"]) <= TOLERANCE
    assert relative_error(output.loss, recording.theirs["loss"][0]) <= TOLERANCE


def test_greedy_ids_single_and_batched(recording):
    expected = recording.facts["greedy_new_tokens"]
    for rows in ([0], [1], [0, 1]):
        batch = recording.batch(rows, left=True)
        del batch["labels"]
        output = recording.model.generate(**batch, max_new_tokens=12, do_sample=False)
        assert output[:, batch["input_ids"].shape[1] :].tolist() == [expected[row] for row in rows]


def test_the_processor_counts_the_same_visual_tokens(recording):
    processor = LlavaSPProcessor.from_pretrained(recording.folder)
    assert processor.num_image_tokens == recording.model.config.image_seq_length
    assert processor.image_token_id == recording.model.config.image_token_id
    assert processor.image_processor.image_aspect_ratio == "pad"
    assert processor.conversation_template == "v1"
