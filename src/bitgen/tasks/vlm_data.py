"""The data of a stage: conversations from a folder of any kind or from scenes, as samples and batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig
from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator
from bitgen.data.conversations.opening import open_conversations
from bitgen.data.conversations.packing import PackingCollator
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import Conversations
from bitgen.data.conversations.speech import Speech
from bitgen.data.length_groups import LengthGroupedBatchSampler
from bitgen.machine.ranks import Processes
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.vlm.language import check_packing
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.vision import image_processor

logger = logging.getLogger(__name__)


def conversations_of(config: VlmConfig, source: str | None, split: str) -> Conversations:
    """The conversations that ``train_data`` or ``val_data`` names.

    Raises:
        ValueError: there is nothing there, it is damaged, or of a kind that gives no conversations.
    """
    data = config.data
    if source is None:
        raise ConfigError(
            "train_data is not set. Write a folder of data_prep/conversations.py, or one of images or features with "
            "captions, or 'scenes' for the built-in data (configs/vlm_quick.yaml)."
        )
    is_training = split == "train"
    return open_conversations(
        source,
        prompts=config.prompt_list,
        seed=config.training.seed,
        caption_sampling=data.caption_sampling if is_training else "all",
        picture_size=config.vision.image_size or 224,
        split=split,
        scenes=data.scenes_train if is_training else data.scenes_val,
    )


@dataclass(frozen=True)
class Picture:
    """An encoded or drawn picture as the encoder takes it; what ``ConversationDataset`` asks for as ``picture``."""

    processor: BitGenProcessor

    def __call__(self, picture: Any, name: str) -> torch.Tensor:
        """``[3, S, S]``. Raises ``ImageError`` naming the picture."""
        return self.processor.image(picture, name)


def dataset_of(
    config: VlmConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: VisionLanguageModel,
    source: Conversations,
    is_training: bool,
) -> ConversationDataset:
    """Samples of conversations for this model; bad records are replaced in training alone.

    Raises:
        ValueError: none of them is of use.
    """
    language, connector, tower = config.language, model.connector, model.tower
    picture: Callable[[Any, str], torch.Tensor] = _none
    if tower is not None and tower.spec.image_size is not None:
        picture = Picture(image_processor(tower.spec, config.data.max_image_pixels))
    return ConversationDataset(
        source,
        speech_of(config, tokenizer),
        connector.tokens if connector is not None else _no_tokens,
        picture,
        language.max_length,
        replace_bad=is_training,
    )


def _no_tokens(frames: int) -> int:
    """Of a language model alone: pictures are left out."""
    return 0


def speech_of(config: VlmConfig, tokenizer: PreTrainedTokenizerBase) -> Speech:
    """How this run writes conversations."""
    return Speech(tokenizer, config.language.template, config.language.system_prompt)


def _none(picture: Any, name: str) -> torch.Tensor:
    return torch.zeros(0)


def collator_of(
    config: VlmConfig, tokenizer: PreTrainedTokenizerBase, model: VisionLanguageModel
) -> VisualCollator | PackingCollator:
    """What makes a training batch of samples.

    Raises:
        ValueError: samples are to be packed, and the language model would not keep them apart.
    """
    if not config.training.packing:
        return VisualCollator(tokenizer.pad_token_id)
    check_packing(model.language)
    return PackingCollator(tokenizer.pad_token_id, config.language.max_length)


def sampler_of(config: VlmConfig, dataset: ConversationDataset, ranks: Processes) -> Any:
    """The batches of a rank."""
    batch = config.training.batch_size
    if not config.training.group_by_length:
        return dataset.batch_sampler(batch, ranks.rank, ranks.world_size)
    logger.info("counting the tokens of %s conversations, for batches of like length", f"{len(dataset):,}")
    lengths = dataset.lengths()
    return LengthGroupedBatchSampler(lengths, batch, ranks.rank, ranks.world_size, seed=config.training.seed)


def most_pictures(config: VlmConfig, source: Conversations) -> int:
    """The most pictures that a visual has: one of captioned images, else what the settings say."""
    return 1 if isinstance(source, PairConversations) else config.data.num_frames
