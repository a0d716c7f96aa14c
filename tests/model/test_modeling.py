"""The model as a transformers citizen: initialisation, splicing, generation, text alone, and a silent `<image>`."""

import math

import pytest
import torch

from llava_sp import LlavaSPForCausalLM
from llava_sp.model import loading
from llava_sp.model.spatial.feature_extractor import FullKernel, QueryTransformer
from llava_sp.model.trainable import add_lora, set_trainable, trainable_parameter_groups


@pytest.fixture
def model(tiny_parts) -> LlavaSPForCausalLM:
    return loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8})[0]


def pixels(model, count: int) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def check_initialisation(model: LlavaSPForCausalLM) -> None:
    """Finite, and of the scale that the definition gives."""
    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, FullKernel):
            bound = 1 / math.sqrt(module.in_features)
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        elif isinstance(module, QueryTransformer):
            assert not module.query.any()
            assert module.transformer.encoder.layers[0].linear1.weight.abs().max() <= math.sqrt(6 / 32)
        elif type(module) is torch.nn.Linear and module.weight.shape == (64, 64):
            assert module.weight.std().item() == pytest.approx(0.2, rel=0.1)  # the tiny LLM's initializer_range
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["cropping", "pooling_dfi", "transformer", "none"])
def test_initialisation_is_the_same_under_every_loading_path(variant, tiny_parts, tmp_path):
    llm, tower = map(str, tiny_parts)
    from_parts, _ = loading.build(llm, tower, variant=variant, overrides={"sfe_channels": 8})
    check_initialisation(from_parts)
    check_initialisation(LlavaSPForCausalLM(from_parts.config))

    # A checkpoint that holds none of the projector: from_pretrained has to initialise all of it.
    bare = {name: tensor for name, tensor in from_parts.state_dict().items() if "multi_modal_projector" not in name}
    from_parts.save_pretrained(tmp_path, state_dict=bare)
    fresh, info = LlavaSPForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert all("multi_modal_projector" in name for name in info["missing_keys"])
    assert info["missing_keys"]
    check_initialisation(fresh)


def test_images_are_spliced_in_order(model):
    config, images = model.config, pixels(model, 2)
    image = [config.image_token_id] * config.image_seq_length
    ids = torch.tensor([[1, *image, 300, *image, 301]])
    embeddings = model.get_input_embeddings()(ids)
    tokens = torch.stack(list(model.get_image_features(images).pooler_output))
    length = config.image_seq_length
    embeddings[0, 1 : 1 + length] = tokens[0]
    embeddings[0, 2 + length : 2 + 2 * length] = tokens[1]
    torch.testing.assert_close(model(input_ids=ids, pixel_values=images).logits, model(inputs_embeds=embeddings).logits)
    with pytest.raises(ValueError, match="do not match"):
        model(input_ids=ids, pixel_values=images[:1])


def test_image_token_is_never_generated_and_does_not_shift_the_loss(model):
    config = model.config
    with torch.no_grad():  # a row that would win everywhere
        model.lm_head.weight[config.image_token_id] = 100 * model.lm_head.weight[:1000].sum(dim=0)
        model.lm_head.weight[config.image_token_id + 1] = -model.lm_head.weight[config.image_token_id]
    ids = torch.tensor([[1, 300, 400, 500]])
    output = model(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1, :1000], ids[0, 1:])
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert not model.lm_head.weight.grad[1000:].any()
    for arguments in ({"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "repetition_penalty": 1.3}):
        generated = model.generate(ids, max_new_tokens=8, **arguments)
        assert generated.max() < 1000


def test_users_may_add_tokens_of_their_own(model):
    model.resize_token_embeddings(1100, mean_resizing=False)
    logits = model(input_ids=torch.tensor([[1, 2]])).logits
    silent = (logits == torch.finfo(logits.dtype).min).all(dim=(0, 1)).nonzero().flatten().tolist()
    assert silent == [model.config.image_token_id]


@pytest.mark.parametrize("arguments", [{"do_sample": False}, {"num_beams": 2}, {"cache_implementation": "static"}])
def test_a_left_padded_batch_generates_what_singles_do(model, arguments):
    config, images = model.config, pixels(model, 2)
    image = [config.image_token_id] * config.image_seq_length
    samples = [[1, *image, 300, 301], [1, 302, *image, 303, 304, 305, 306], [1, 307, 308]]
    length = max(map(len, samples))
    ids = torch.tensor([[0] * (length - len(sample)) + sample for sample in samples])
    mask = torch.tensor([[0] * (length - len(sample)) + [1] * len(sample) for sample in samples])
    batched = model.generate(ids, pixel_values=images, attention_mask=mask, max_new_tokens=10, **arguments)
    for row, sample in enumerate(samples):
        image_of_row = {"pixel_values": images[row : row + 1]} if row < 2 else {}
        single = model.generate(torch.tensor([sample]), max_new_tokens=10, **image_of_row, **arguments)
        assert batched[row, length:].tolist()[: single.shape[1] - len(sample)] == single[0, len(sample) :].tolist()


@pytest.mark.parametrize("lora", [False, True])
def test_text_alone_gives_the_projector_zero_gradients_not_none(model, lora):
    if lora:
        model = add_lora(model, rank=2, alpha=4, dropout=0.0)
    else:
        set_trainable(model, ["projector"])
    ids = torch.tensor([[1, 300, 400]])
    expected = model.eval()(input_ids=ids, labels=ids).loss
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    projector = [p for _, p in trainable_parameter_groups(model)["projector"]]
    assert projector
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in projector)


def test_owners_of_the_trainable_parameters(model):
    set_trainable(model, ["projector"])
    assert set(trainable_parameter_groups(model)) == {"projector"}
    set_trainable(model, ["projector", "llm"])
    assert set(trainable_parameter_groups(model)) == {"projector", "llm"}
    set_trainable(model, ["projector", "llm", "vision_tower"])
    assert set(trainable_parameter_groups(model)) == {"projector", "llm", "vision_tower"}
    assert sum(map(len, trainable_parameter_groups(model).values())) == len(list(model.parameters()))
    groups = trainable_parameter_groups(add_lora(model, rank=2, alpha=4, dropout=0.0))
    assert set(groups) == {"projector", "lora"}
    assert len(groups["lora"]) == 2 * 7 * 2  # A and B for each of 7 linear layers in 2 blocks
    assert all(".language_model." in name for name, _ in groups["lora"])


def test_gradient_checkpointing_changes_no_gradient(model):
    config = model.config
    ids = torch.tensor([[1, *[config.image_token_id] * config.image_seq_length, 300, 301]])
    inputs = {"input_ids": ids, "labels": ids.masked_fill(ids == config.image_token_id, -100)}
    gradients = []
    set_trainable(model, ["projector"])
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**inputs, pixel_values=pixels(model, 1)).loss.backward()
        gradients.append([p.grad.clone() for _, p in trainable_parameter_groups(model)["projector"]])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16(tiny_parts):
    model, _ = loading.build(*map(str, tiny_parts), overrides={"sfe_channels": 8}, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    image = [model.config.image_token_id] * model.config.image_seq_length
    output = model(input_ids=torch.tensor([[1, *image]]), pixel_values=pixels(model, 1).bfloat16())
    assert output.logits.dtype == torch.bfloat16
    assert output.logits.isfinite().all()
