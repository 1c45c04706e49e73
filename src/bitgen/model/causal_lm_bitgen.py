"""BitGen as transformers knows models: what an export's AutoModel and AutoModelForCausalLM load.

The weights have the names of :class:`BitGenModel`; only ``forward`` differs, and ``generate`` comes along.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import logging

from .generation import nothing_follows, one_for_each, prompts_of, within_context
from .likelihood import shifted_loss
from .modeling_bitgen import BitGenModel
from .recalled import Recalled
from .sequence_layout import SequenceLayout, fitting_positions, last_tokens, sequence_layout
from .speaking import not_empty
from .spoken_memory import SpokenMemory, checked_memory

CHECKSUMS = "checksums.json"  # of an export: SHA-256 of weights and tokenizer

if TYPE_CHECKING:
    # transformers 4 finds the files of a local folder that this one names, and not those that they name in turn.
    from .attention import attend as attend
    from .configuration_bitgen import BitGenConfig as BitGenConfig
    from .cross_modal_fusion import build_fusion as build_fusion
    from .dropout import Dropout as Dropout
    from .episodic_memory import MemoryLayer as MemoryLayer
    from .feature_compressor import FeatureCompressor as FeatureCompressor
    from .frozen_tower import FrozenTower as FrozenTower
    from .full_precision import full_precision as full_precision
    from .image_settings import ImageSettings as ImageSettings
    from .parameter_roles import ParameterRole as ParameterRole
    from .picture import Picture as Picture
    from .pipeline_bitgen import BitGenImageTextToTextPipeline as BitGenImageTextToTextPipeline
    from .question import Question as Question
    from .recall import Recall as Recall
    from .rotary import rotate as rotate
    from .spoken_memory_file import read_facts as read_facts
    from .text_decoder import TextDecoder as TextDecoder
    from .token_ids import text_ids as text_ids
    from .vision_encoder import VisionEncoder as VisionEncoder
    from .vision_towers import TowerKind as TowerKind

logger = logging.get_logger(__name__)
# What transformers passes to every model, and this one has no use for.
_HARMLESS = {"cache_position", "num_items_in_batch", "is_first_iteration", "next_sequence_length", "mm_token_type_ids"}


class BitGenTextModel(BitGenModel):
    """The network without its output head: ids, and an image if there is one, to hidden states."""

    supports_gradient_checkpointing = True

    @property
    def git(self) -> BitGenTextModel:
        """This model, under the name by which DevBench asks for the image encoder."""
        return self

    @property
    def image_encoder(self) -> nn.Module | None:
        """The vision tower; None where images are features computed earlier."""
        return self.vision_encoder

    def image_context(
        self, pixel_values: torch.Tensor | None = None, vision_features: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """The image tokens ``[B, P', D]`` that text is written from, pooled as in training; None without an image."""
        if pixel_values is None and vision_features is None:
            return None
        given = (None if part is None else part.to(self.device) for part in (pixel_values, vision_features))
        return self.pool_image_tokens(self.encode_image(*given).image_tokens).to(self.dtype)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table, which is the output head too: what ``resize_token_embeddings`` changes."""
        return self.embeddings.token

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token table, and of a model that speaks from a memory its own tables by ones of as many rows."""
        self.embeddings.token = value
        if self.recall is not None:
            self.recall.resize(value.num_embeddings)
        self.config.tokenizer_size = None  # what an export recorded: another table is for another tokenizer

    def forward(  # type: ignore[override]  # what transformers calls, unlike the network's own
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        recalled: torch.Tensor | None = None,
        recalled_mask: torch.Tensor | None = None,
        recalled_after: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Hidden states of text, or of text given an image.

        Args:
            input_ids: ``[B, T]``, BOS first. Longer than ``max_seq_len``: the last ``max_seq_len`` tokens are read.
            attention_mask: ``[B, T]`` (with a cache ``[B, S]``, cached tokens included), or ``[B, T, T]``.
            pixel_values: ``[B, 3, H, W]``, as the processor makes them; or instead
            vision_features: ``[B, P, C]`` or ``[B, C]``, for models without a tower; or instead
            image_tokens: ``[B, P', D]`` of :meth:`image_context`.
            token_type_ids: accepted and ignored.
            output_hidden_states: also return what enters each block, and last what leaves the final norm.
            inputs_embeds: ``[B, T, D]``, the tokens' embeddings in place of their ids, without positions.
            position_ids: ``[B, T]`` or ``[1, T]``, each below ``max_seq_len``; by default real tokens are counted.
            output_attentions: also return the weights of each block's attention, ``[B, H, T, S]``.
            recalled, recalled_mask, recalled_after: of :class:`Recalled`. A code then follows each last hidden state.
            kwargs: what other versions of transformers and its companions pass; it is ignored, with a warning.

        Raises:
            ValueError: more than one kind of image, the wrong kind for this model, not exactly one of ids and
                embeddings, a mask or positions that do not fit, or a cache of fixed size.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass input_ids or inputs_embeds: one of them.")
        for name in sorted(set(kwargs) - _HARMLESS):
            logger.warning_once(f"{type(self).__name__} has no argument {name}: it is ignored")
        if image_tokens is None:
            image_tokens = self.image_context(pixel_values, vision_features)
        elif pixel_values is not None or vision_features is not None:
            raise ValueError("Pass pixel_values, vision_features or image_tokens: one of them.")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if getattr(past_key_values, "is_compileable", False):
            raise ValueError(
                "This model's cache grows with the text; one of fixed size ('static') is not supported. Leave "
                "cache_implementation out."
            )
        if input_ids is None:
            assert inputs_embeds is not None
            input_ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
        attentions: list[torch.Tensor] | None = [] if output_attentions else None
        options: dict[str, Any] = {"cache": past_key_values, "attentions": attentions}
        if recalled is not None:
            here = recalled.new_ones(recalled.shape[:2], dtype=torch.bool) if recalled_mask is None else recalled_mask
            options["recalled"] = Recalled(recalled, here, recalled_after)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        limit = self.config.max_seq_len
        if input_ids.shape[1] > limit and not past and (attention_mask is None or attention_mask.dim() == 2):
            if inputs_embeds is not None or position_ids is not None:
                raise ValueError(
                    f"{input_ids.shape[1]} tokens are more than max_seq_len={limit}: cut inputs_embeds and "
                    "position_ids yourself, or pass input_ids alone."
                )
            states = self._end_of_long(input_ids, attention_mask, image_tokens, options)
        else:
            layout = sequence_layout(attention_mask, input_ids, past, limit)
            if position_ids is not None:
                layout = layout._replace(positions=fitting_positions(position_ids, input_ids, limit))
            states = self._states(input_ids, layout, image_tokens, embedded=inputs_embeds, **options)
        output = BaseModelOutputWithPast(
            last_hidden_state=states[-1],
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if attentions is not None else None,
        )
        return output if return_dict in (None, True) else output.to_tuple()

    def _states(
        self, input_ids: torch.Tensor, layout: SequenceLayout, image_tokens: torch.Tensor | None, **options: Any
    ) -> list[torch.Tensor]:
        """What enters each block, and last what leaves the final norm."""
        trace: list[torch.Tensor] = []
        output = self.run_stack(input_ids, layout.real, image_tokens, layout=layout, trace=trace, **options)
        last = output.hidden_states
        return [*trace, last if output.said is None else torch.cat([last, output.said.to(last.dtype)], dim=-1)]

    def _end_of_long(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        image_tokens: torch.Tensor | None,
        options: dict[str, Any],
    ) -> list[torch.Tensor]:
        """:meth:`_states` ``[B, T, D]`` of sequences that are too wide. They are cut before anything of the size T x T
        is made; a token before those that are read sees nothing but itself."""
        limit = self.config.max_seq_len
        index, mask = last_tokens(attention_mask, input_ids, limit)
        ids = input_ids.gather(1, index)
        read = self._states(ids, sequence_layout(mask, ids, 0, limit), image_tokens, **options)
        alone: list[list[torch.Tensor]] = [[] for _ in read]
        for part in input_ids.split(limit, dim=1):
            images = image_tokens.repeat_interleave(part.shape[1], dim=0) if image_tokens is not None else None
            single = part.reshape(-1, 1)
            states = self._states(single, sequence_layout(None, single, 0, limit), images)
            for found, state in zip(alone, states, strict=True):
                found.append(state.reshape(*part.shape, -1))
        alone[-1] = [F.pad(state, (0, read[-1].shape[-1] - state.shape[-1])) for state in alone[-1]]
        return [
            torch.cat(parts, dim=1).scatter(1, index[..., None].expand_as(state), state)
            for parts, state in zip(alone, read, strict=True)
        ]


class BitGenForCausalLM(BitGenTextModel, GenerationMixin):
    """The language model: next-token logits in float32, a loss for ``labels``, and ``generate``."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **options: Any) -> None:
        """As transformers does. Checksums that an export of other weights left in the folder do not stay."""
        super().save_pretrained(save_directory, *args, **options)
        (Path(save_directory) / CHECKSUMS).unlink(missing_ok=True)

    def forward(  # type: ignore[override]  # what transformers calls, unlike the network's own
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        *,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        recalled: torch.Tensor | None = None,
        recalled_mask: torch.Tensor | None = None,
        recalled_after: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Next-token logits ``[B, T, V]``; arguments and errors as for :class:`BitGenTextModel`.

        Args:
            labels: ``[B, T]``, the ids themselves: they are shifted here, and -100 is left out of the mean loss.
            logits_to_keep: compute the logits of that many last positions alone (0: of all), or of those indices. A
                boolean ``[B, T]`` keeps its true positions; the logits are then ``[n, V]``.
            num_items_in_batch: by what the summed loss is divided, where it is no mean: of all micro-batches of a step.
        """
        output: Any = super().forward(
            input_ids,
            attention_mask,
            pixel_values,
            vision_features,
            image_tokens,
            token_type_ids,
            past_key_values,
            use_cache,
            output_hidden_states,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            output_attentions=output_attentions,
            recalled=recalled,
            recalled_mask=recalled_mask,
            recalled_after=recalled_after,
            **kwargs,
        )
        hidden = output.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor):
            mask = logits_to_keep.dtype == torch.bool and logits_to_keep.dim() == 2
            hidden = hidden[logits_to_keep] if mask else hidden[:, logits_to_keep]
        elif logits_to_keep and labels is None:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_logits(hidden).float()
        result = CausalLMOutputWithPast(
            loss=None if labels is None else shifted_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if return_dict in (None, True) else result.to_tuple()

    def new_memory(self) -> SpokenMemory:
        """A memory to teach and to pass to :meth:`generate`; ``ValueError`` where the model cannot speak from one."""
        return SpokenMemory(self)

    def load_memory(self, file: str | os.PathLike) -> SpokenMemory:
        """What ``memory.save(file)`` wrote. Raises as :meth:`SpokenMemory.load`."""
        return SpokenMemory.load(file, self)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        pixel_values: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
        memory: SpokenMemory | Any = None,
        **kwargs: Any,
    ) -> Any:
        """``GenerationMixin.generate``, with an image encoded once for all steps. Without a prompt it starts at BOS.

        Prompts of different lengths are padded on the left; one picture may stand for all. Generation ends at EOS, at
        the length asked for, or at ``max_seq_len``. What a ``memory`` holds is said where the picture or, without one,
        the prompt means it. ``ValueError``: other numbers of pictures and prompts, or a prompt that fills the context.
        """
        kwargs.pop("token_type_ids", None)
        image_tokens, prompts = self.image_context(pixel_values, vision_features), prompts_of(inputs, kwargs)
        if image_tokens is not None:
            kwargs["image_tokens"] = image_tokens = one_for_each(image_tokens, prompts)
            if prompts is None:
                inputs = torch.full((len(image_tokens), 1), self.config.bos_token_id, device=image_tokens.device)
        if memory is not None:
            kwargs.update(checked_memory(memory).answering(self, inputs, kwargs))
        kwargs = within_context(inputs, kwargs, self.config.max_seq_len)
        kwargs = not_empty(kwargs, (generation_config, self.generation_config), self.config.recall_space)
        return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Called by ``generate``, which looks for ``inputs_embeds`` in this signature, before each step; leaves out the
        ``tokenizer``, which ``stop_strings`` need, and what is None."""
        kwargs.pop("tokenizer", None)
        kwargs |= {} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if inputs.get("recalled") is not None and 0 < (new := inputs["input_ids"].shape[1]) < input_ids.shape[1]:
            said = input_ids[:, :-new].to(inputs["input_ids"].device)  # which transformers has moved to the model
            mask = inputs.get("attention_mask", torch.ones_like(input_ids))[:, :-new].to(said.device)
            inputs["recalled_after"] = said.masked_fill(mask == 0, -1)
        return {name: value for name, value in inputs.items() if value is not None}

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, *args: Any
    ) -> None:
        """Called by ``generate`` before its first step: end at the context instead of failing there."""
        limit = self.config.max_seq_len
        if input_ids_length >= limit:
            raise nothing_follows(input_ids_length, limit)
        if generation_config.max_length is not None:
            generation_config.max_length = min(generation_config.max_length, limit)
        super()._validate_generated_length(generation_config, input_ids_length, *args)
