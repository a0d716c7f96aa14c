"""Operations are counted by formula; here they are held against what PyTorch counts while it computes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_sp.model import loading
from llava_sp.model.trainable import add_lora, plain_model, set_trainable
from llava_sp.train.metrics import FlopCounter, peak_flops


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "finetune_lora"])
@pytest.mark.parametrize("variant", ["cropping_no_dfi", "cropping", "transformer", "none"])
def test_the_formula_agrees_with_pytorch(stage, variant, tiny_parts):
    model, _ = loading.build(*map(str, tiny_parts), variant=variant, overrides={"sfe_channels": 256})
    if stage == "finetune_lora":
        model = add_lora(model, rank=4, alpha=8, dropout=0.0)
    else:
        set_trainable(model, ["projector", "llm"] if stage == "finetune" else ["projector"])
    plain_model(model).set_attn_implementation("eager")  # PyTorch does not count its fused attention on the CPU
    config = model.config
    image = [config.image_token_id] * config.image_seq_length
    ids = torch.tensor([[1, *image, *range(100, 180)]] * 2)
    pixels = torch.randn(2, 3, config.vision_config.image_size, config.vision_config.image_size)
    model.train()
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, pixel_values=pixels, labels=ids, use_cache=False).loss.backward()
    ours = FlopCounter(model).batch(ids.numel(), ids.shape[1], len(pixels))
    assert ours == pytest.approx(counted.get_total_flops(), rel=0.1)


def test_peaks_are_told_from_names():
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GeForce RTX 4090") == 165e12
    for other in ("A GPU of another maker", "NVIDIA H100 NVL", "NVIDIA RTX A4000", "NVIDIA RTX A1000", "NVIDIA A400",
                  "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 3g.40gb"):  # fmt: skip
        assert peak_flops(other) is None
