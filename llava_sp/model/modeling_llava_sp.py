"""LLaVA-SP as a transformers model: LLaVA with another projector.

The inherited code of the installed transformers does the rest: tower, splicing, generation. The names `vision_tower`,
`multi_modal_projector` and `language_model` are LLaVA's, for serving engines map on them.

Shapes: B batch, L sequence, N patches, T spatial tokens, H hidden size of the LLM, V rows of the vocabulary.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaPreTrainedModel
from transformers.utils import can_return_tuple

from llava_sp.model.configuration_llava_sp import LlavaSPConfig, PatchMergeType
from llava_sp.model.spatial.feature_extractor import FullKernel, QueryTransformer
from llava_sp.model.spatial.projector import LlavaSPProjector
from llava_sp.model.trust import check_folder


class LlavaSPPreTrainedModel(LlavaPreTrainedModel):
    """Ties the model classes to their configuration, and initialises what transformers would not, or would badly."""

    config: LlavaSPConfig
    config_class = LlavaSPConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint of any kind; partial ones are completed from the parts that their card names.

        Takes transformers' arguments; for a partial checkpoint `dtype`, `device_map`, those that say where its own
        files are (`revision`, `token`, `subfolder` and the like), and those of the LLM. LoRA comes merged; for the
        `PeftModel` itself see `llava_sp.model.loading.load`.

        Raises:
            UserError: There is no checkpoint, or it does not fit; see `llava_sp.model.loading.load`.
        """
        from llava_sp.model import hub, loading

        by_auto = kwargs.get("adapter_kwargs") or {}  # for the Auto classes, an adapter is no model
        adapter = by_auto.get("_adapter_model_path")
        path = adapter or pretrained_model_name_or_path
        if path is None:
            return super().from_pretrained(None, *args, **kwargs)
        where = {name: kwargs[name] for name in hub.WHERE if kwargs.get(name) is not None}
        if adapter:
            where["revision"] = by_auto.get("revision")
        if not loading.is_partial(str(path), **where):
            check_folder(path, **where)
            return super().from_pretrained(path, *args, **{"use_safetensors": True, **kwargs})
        aside = ("config", "adapter_kwargs", *hub.WHERE)
        passed = {name: value for name, value in kwargs.items() if name not in aside}
        folder = hub.local_folder(path, **where) if where else path
        if issubclass(cls, LlavaSPModel):
            device_map = passed.pop("device_map", None)
            return loading.place(loading.load(folder, **passed)[0].model, device_map)
        return loading.load(folder, **passed)[0]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises one module's own parameters; every loading path comes through here.

        Linear layers follow the LLM's `initializer_range`. The kernels keep the scale of PyTorch's convolutions,
        uniform in +-1/sqrt(fan_in): a fixed 0.02 would be 26 times too large for a 24 x 24 kernel over 1024 channels.
        """
        if isinstance(module, FullKernel):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            return
        super()._init_weights(module)
        if isinstance(module, LlavaSPProjector) and module.image_newline is not None:
            init.normal_(module.image_newline, std=1 / math.sqrt(len(module.image_newline)))
        if isinstance(module, QueryTransformer):
            init.zeros_(module.query)
            for parameter in module.transformer.parameters():
                if parameter.dim() > 1:
                    init.xavier_uniform_(parameter)


class LlavaSPModel(LlavaSPPreTrainedModel, LlavaModel):
    """Vision tower, projector with spatial tokens, and LLM without its head."""

    def __init__(self, config: LlavaSPConfig) -> None:
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config, trust_remote_code=False)
        self.multi_modal_projector = LlavaSPProjector(config)
        self.language_model = AutoModel.from_config(config.text_config, trust_remote_code=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs LLaVA's forward pass; see `LlavaSPForCausalLM.forward` for the shapes."""
        begins = past_key_values is None or past_key_values.get_seq_length() == 0
        in_step = self.training or (begins and is_deepspeed_zero3_enabled())
        if in_step and pixel_values is None and inputs_embeds is None:
            # Ranks must agree on which parameters get gradients (under ZeRO-3 on which are gathered): a rank with text
            # alone would otherwise leave the others waiting for its share of the projector's.
            inputs_embeds = self.get_input_embeddings()(input_ids) + self._nothing_from_a_blank_image()
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_sizes: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Computes the visual tokens of images.

        Args:
            pixel_values: [images, 3, S, S]; for AnyRes [images, most views, 3, S, S], with any padding at the end.
            image_sizes: For AnyRes: height and width of each image in pixels, [images, 2].
            **kwargs: Passed on to LLaVA's method.

        Returns:
            The tower's output, with `pooler_output` a list of each image's visual tokens [its number of them, H].

        Raises:
            ValueError: The model is an AnyRes model, and `image_sizes` or the dimension of views is missing.
        """
        kwargs["return_dict"] = True
        layout = self.config.tile_layout
        if layout is None:
            return super().get_image_features(pixel_values, **kwargs)
        if image_sizes is None or pixel_values.dim() != 5:
            raise ValueError(
                "This model lays images out on tiles: it needs pixel_values [images, views, 3, S, S] and image_sizes "
                "[images, 2], as its processor makes them."
            )
        sizes = [(height, width) for height, width in image_sizes.tolist()]
        counts = [layout.count_views(*size) for size in sizes]
        views = torch.cat([image[:count] for image, count in zip(pixel_values, counts, strict=True)])
        outputs = super().get_image_features(views, **kwargs)
        tokens = torch.stack(outputs.pooler_output).split(counts)
        outputs.pooler_output = [layout.join(image, *size) for image, size in zip(tokens, sizes, strict=True)]
        return outputs

    @torch.random.fork_rng(devices=[])
    def lay_out_tiles(
        self, image_grid_pinpoints: list[list[int]], patch_merge_type: PatchMergeType, seed: int = 0
    ) -> bool:
        """Makes an AnyRes model of one that saw one tile an image, or gives it other grids.

        Args:
            image_grid_pinpoints: As in `LlavaSPConfig`.
            patch_merge_type: As in `LlavaSPConfig`.
            seed: Seed of the new parameter's initialisation; the global random state is left alone.

        Returns:
            Whether there is a new, untrained parameter: the token that closes a row.
        """
        self.config.image_grid_pinpoints = image_grid_pinpoints
        self.config.patch_merge_type = patch_merge_type
        self.config.check_tile_fields()
        projector = self.multi_modal_projector
        if patch_merge_type != "spatial_unpad" or projector.image_newline is not None:
            return False
        projector.image_newline = nn.Parameter(torch.empty_like(projector.linear_2.weight[:, 0]))
        torch.manual_seed(seed)
        self._init_weights(projector)
        return True

    def _nothing_from_a_blank_image(self) -> torch.Tensor:
        """A zero that depends on every parameter of the projector."""
        vision = self.config.vision_config
        blank = torch.zeros(
            1, vision.num_channels, vision.image_size, vision.image_size, dtype=self.dtype, device=self.device
        )
        return 0.0 * torch.stack(super().get_image_features(blank, return_dict=True).pooler_output).sum()


class LlavaSPForCausalLM(LlavaSPPreTrainedModel, LlavaForConditionalGeneration):
    """LLaVA-SP with its language-modelling head.

    Attributes:
        origin: Where the weights came from that training may leave as they are: `llm` and `vision_tower`, or `model`.
        fingerprint: What those weights of `llm` and `vision_tower` were, see `llava_sp.model.fingerprint`.
    """

    origin: dict[str, str] | None = None
    fingerprint: dict[str, str] | None = None

    def __init__(self, config: LlavaSPConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = LlavaSPModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_sizes: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple | LlavaCausalLMOutputWithPast:
        """Predicts the next tokens.

        Args:
            input_ids: Token ids [B, L]; each image stands as copies of `config.image_token_id`, one for each of its
                visual tokens (T + N for one tile).
            pixel_values: Preprocessed images [images, 3, S, S], in the order of their tokens in the batch; for AnyRes
                [images, most views, 3, S, S], see `LlavaSPImageProcessor`.
            attention_mask: 1 for tokens, 0 for padding [B, L].
            position_ids: Positions of the tokens [B, L].
            past_key_values: Cache of earlier keys and values.
            inputs_embeds: Embeddings [B, L, H] in place of `input_ids`.
            labels: Ids to predict [B, L]; -100 takes no part in the loss.
            logits_to_keep: Number of last positions to compute logits for; 0 for all.
            image_sizes: For AnyRes: height and width of each image in pixels, [images, 2].
            return_dict: False for a plain tuple.
            **kwargs: Passed on to LLaVA's forward pass and to the loss (`num_items_in_batch`).

        Returns:
            The loss (mean over the supervised tokens, or their sum over `num_items_in_batch`) if `labels` are given,
            the logits [B, L, V], and the cache. The rows of the vocabulary that stand for `<image>` and for padding
            take no part in the softmax.
        """
        outputs = super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            logits_to_keep=logits_to_keep,
            image_sizes=image_sizes,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name != "num_items_in_batch"},
        )
        silence_unused_rows(outputs.logits, self.config)
        if labels is not None:
            outputs.loss = self.loss_function(
                logits=outputs.logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return outputs if return_dict is not False else outputs.to_tuple()

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the vocabulary as transformers does; rows that a user adds count as the LLM's own."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens is not None:
            self.config.llm_vocab_size = self.config.text_config.vocab_size
        return embeddings


def silence_unused_rows(logits: torch.Tensor, config: LlavaSPConfig) -> None:
    """Keeps the rows that no LLM was trained for from being generated, and from shifting the loss.

    In place on the detached tensor: autograd saves nothing of the head's output, a softmax of zero passes no gradient
    back, and a copy would cost B * L * V floats.

    Args:
        logits: What the head puts out [..., V].
        config: The model's configuration.
    """
    lowest = torch.finfo(logits.dtype).min
    detached = logits.detach()
    detached[..., config.llm_vocab_size :] = lowest
    detached[..., config.image_token_id : config.image_token_id + 1] = lowest
