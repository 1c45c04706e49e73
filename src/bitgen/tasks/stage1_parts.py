"""From a configuration to the things it describes, tokenizer, datasets, model; and from a checkpoint to its model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from bitgen.config import Config, ConfigError
from bitgen.config.sources import SCENES, parse_sources
from bitgen.data.dataset import PairDataset
from bitgen.data.mixing import MixedDataset, encoder_of
from bitgen.data.records import RecordReader
from bitgen.data.scenes.dataset import ScenesDataset, scene_captions
from bitgen.data.shards import open_shards
from bitgen.data.stream import StreamDataset, stream_captions
from bitgen.data.text_and_pairs import TextAndPairs
from bitgen.data.text_blocks import TextBlocks
from bitgen.data.tokenizer import build_tokenizer, is_kept, load_tokenizer, take_over, vocabulary_size
from bitgen.guards.printable import printable
from bitgen.machine.randomness import seed_everything
from bitgen.machine.ranks import Processes, main_first
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.factory import (
    build_model,
    initialise_random_tower,
    random_vision_config,
)
from bitgen.model.image_settings import ImageSettings
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.pretrained_tower import pretrained_normalisation, pretrained_vision_config
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.model.token_ids import begins_behind_space, space_id, words_of
from bitgen.tasks.fingerprints import trained_on
from bitgen.tasks.start_from import start_from, tokenizer_to_take_over
from bitgen.trained import TOKENIZER_FOLDER

logger = logging.getLogger(__name__)

FEATURES, RANDOM = "features", "random"

TrainingPairs = PairDataset | MixedDataset | StreamDataset


class RunParts(NamedTuple):
    """Tokenizer, data (``val``, ``text_val`` None: no such validation) and the model before its first step."""

    tokenizer: PreTrainedTokenizerBase
    train: TrainingPairs | TextAndPairs
    val: PairDataset | None
    text_val: TextBlocks | None
    model: BitGenModel


# ---- tokenizer and data ----


def training_captions(config: Config) -> Iterator[str]:
    """The captions that a tokenizer is trained on."""
    assert config.data.train_data is not None
    if config.data.train_data == SCENES:
        return scene_captions("train", config.data.scenes_train, config.training.seed)
    paths = [source.path for source in parse_sources(config.data.train_data)]
    if config.data.streaming:
        return stream_captions([open_shards(path) for path in paths])
    return chain.from_iterable(RecordReader(path).iter_captions() for path in paths)


def build_run_tokenizer(config: Config, processes: Processes, fresh: bool = True) -> PreTrainedTokenizerBase:
    """The run's tokenizer, trained and kept by rank 0 first where the configuration asks for that. A run that starts
    from a trained model takes over that model's: one trained anew on other captions would number tokens otherwise.

    Raises:
        ConfigError: not ``fresh``, and the tokenizer named now is not the one that the run keeps; there is no trained
            model to start from, or its tokenizer is too large.
    """
    folder, start = Path(config.output.output_dir) / TOKENIZER_FOLDER, config.training.init_from
    captions = training_captions(config) if config.data.tokenizer == "train" else None
    with main_first(processes):
        if captions is not None and fresh and start is not None:
            return _taken_over(tokenizer_to_take_over(start), config, folder)
        if captions is not None and not fresh and not folder.is_dir():
            if (kept := tokenizer_beside(config.training.resume)) is not None:
                return _taken_over(load_tokenizer(kept), config, folder)
        if not fresh and captions is None and folder.is_dir() and not is_kept(config.data.tokenizer, folder):
            raise ConfigError(
                f"tokenizer {config.data.tokenizer} is not the one that this run began with: its embeddings would "
                f"stand for other tokens. Write tokenizer {folder}, which keeps that one, or another output_dir for a "
                "new run."
            )
        return build_tokenizer(config.data.tokenizer, captions, config.model.vocab_size, folder)


def _taken_over(tokenizer: PreTrainedTokenizerBase, config: Config, folder: Path) -> PreTrainedTokenizerBase:
    try:
        return take_over(tokenizer, config.model.vocab_size, folder)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def tokenizer_beside(resumed: str | None) -> Path | None:
    """The tokenizer that the run of a checkpoint keeps, for a run that goes on in another folder."""
    places = [] if resumed is None else [Path(resumed) / TOKENIZER_FOLDER, Path(resumed).parent / TOKENIZER_FOLDER]
    return next((place for place in places if place.is_dir()), None)


def build_training_dataset(config: Config, processor: BitGenProcessor) -> TrainingPairs:
    """What ``train_data`` names: one source or several, mapped or streamed.

    Raises:
        ValueError: a source is missing, damaged or empty, or its kind is not what the encoder takes.
    """
    data = config.data
    assert data.train_data is not None
    sources = parse_sources(data.train_data)
    paths, weights = [source.path for source in sources], [source.weight for source in sources]
    if data.streaming:
        dataset = StreamDataset(
            [open_shards(path) for path in paths],
            weights,
            processor,
            seed=config.training.seed,
            caption_sampling=data.caption_sampling,
            augment=data.image_augmentation,
            lanes=max(data.num_workers, 1),
            shuffle_buffer=data.shuffle_buffer,
        )
        _check_kind(config, data.train_data, dataset.kind)
        return dataset
    datasets = [build_dataset(config, path, "train", processor, is_training=True) for path in paths]
    return MixedDataset(datasets, weights) if len(datasets) > 1 else datasets[0]


def build_text(config: Config, folder: str, tokenizer: PreTrainedTokenizerBase) -> TextBlocks:
    """A folder of text as packed sequences.

    Raises:
        ValueError: it is missing or damaged, or was made with another tokenizer than the run's.
    """
    length = config.data.text_seq_len or config.model.max_seq_len
    return TextBlocks(folder, tokenizer, length, config.training.seed)


def _check_kind(config: Config, source: str, kind: str) -> None:
    if (kind == FEATURES) != (config.vision.vision_encoder == FEATURES):
        wanted = FEATURES if kind == FEATURES else "an encoder (random, a folder or a hub id)"
        raise ConfigError(
            f"{source} holds {kind}, and vision_encoder is {config.vision.vision_encoder!r}: "
            f"write vision_encoder {wanted}, or name another folder."
        )


def build_dataset(
    config: Config, source: str, split: str, processor: BitGenProcessor, is_training: bool = False
) -> PairDataset:
    """The mapped dataset that ``source`` names: a folder, or ``scenes`` (then ``split`` is train or val).

    Raises:
        ValueError: the folder is missing or damaged, or its kind is not what the encoder takes.
    """
    data, vision = config.data, config.vision
    if source == SCENES:
        size = data.scenes_train if split == "train" else data.scenes_val
        sampling = data.caption_sampling if is_training else "all"
        return ScenesDataset(split, size, config.training.seed, processor, sampling)
    dataset = PairDataset(
        source,
        processor,
        seed=config.training.seed,
        caption_sampling=data.caption_sampling if is_training else "all",
        augment=data.image_augmentation and is_training,
        feature_dim=vision.feature_dim,
        feature_tokens=vision.feature_tokens,
        replace_bad=is_training,
    )
    _check_kind(config, source, dataset.kind)
    return dataset


# ---- model ----


def vision_config_of(config: Config) -> dict | None:
    """The tower's configuration: of the hub or folder, from the five ``vision_*`` sizes, or None for features."""
    vision = config.vision
    if vision.vision_encoder == FEATURES:
        return None
    if vision.vision_encoder == RANDOM:
        assert vision.image_size is not None
        return random_vision_config(
            vision.vision_hidden_size,
            vision.vision_num_layers,
            vision.vision_num_heads,
            vision.vision_patch_size,
            vision.image_size,
        )
    return pretrained_vision_config(vision.vision_encoder, vision.vision_revision)


def normalisation_of(config: Config, vision_config: dict | None) -> dict[str, Any]:
    """How pixels become the tower's input, by the names that the network's configuration has for it."""
    vision, seen = config.vision, ImageSettings()
    if vision.vision_encoder not in (FEATURES, RANDOM) and vision.image_normalisation == "encoder":
        assert vision_config is not None
        seen = pretrained_normalisation(vision.vision_encoder, vision_config, vision.vision_revision)
    return {"image_mean": seen.mean, "image_std": seen.std, "image_resample": seen.resample}


def model_config_of(
    config: Config,
    vision_config: dict | None,
    feature_shape: tuple[int | None, int | None] | None = None,
    vocab_size: int | None = None,
    normalisation: dict[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> BitGenConfig:
    """The network that a configuration describes; ``feature_shape [P, C]`` as the dataset declares it, and
    ``normalisation`` as :func:`normalisation_of` gives it; ``tokenizer``: for a network that recalls texts.

    Settings that the network knows by the same name pass through; only the others stand here.
    """
    vision, lora = config.vision, config.lora
    groups = vision, lora, config.model, config.memory, config.episodes
    known = BitGenConfig.own_names()
    settings = {name: value for group in groups for name, value in vars(group).items() if name in known}
    tokens, dim = feature_shape if feature_shape is not None else (None, None)
    settings |= {
        "vision_config": vision_config,
        "image_size": vision.image_size or (vision_config or {}).get("image_size", 224),
        "feature_dim": dim,
        "feature_tokens": tokens,
        "feature_pool": vision.feature_cache_pool,
        "vision_tuning": "frozen" if vision_config is None else vision.vision_tuning,
        "init_lora_weights": lora.peft_init,
        "lora_layers": lora.layer_indices,
        "vocab_size": vocab_size or config.model.vocab_size,
        **(normalisation or {}),
    }
    if tokenizer is not None and config.episodes.recall_tokens:
        settings |= {"recall_space": space_id(tokenizer), "recall_behind_space": begins_behind_space(tokenizer)}
        settings |= {"recall_words": words_of(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    return BitGenConfig(**settings)


def build_untrained(config: Config, vision_config: dict | None, model_config: BitGenConfig) -> BitGenModel:
    """The model before its first step, pretrained vision weights loaded where the configuration names some."""
    is_pretrained = vision_config is not None and config.vision.vision_encoder != RANDOM
    model = build_model(
        model_config, config.vision.vision_encoder if is_pretrained else None, config.vision.vision_revision
    )
    if config.vision.vision_encoder == RANDOM:
        assert model.vision_encoder is not None
        initialise_random_tower(model.vision_encoder)
        model.vision_encoder.reset_magnitudes()  # DoRA's are of the weights before, else
    if config.vision.compile and model.vision_encoder is not None:
        model.vision_encoder.compile()
    return model


def _refuse_trained_on(config: Config, pairs: TrainingPairs | None, val: PairDataset) -> None:
    """By content: a copy, or the same images prepared again, has another name."""
    shared, compared = trained_on(pairs, val)
    if shared and shared == compared:
        raise ConfigError(
            f"val_data {config.data.val_data} holds the training images themselves, so its figures would say nothing. "
            "Write the folder of a held-out split, or leave val_data out."
        )
    if shared:
        logger.warning(
            "%d of %d held-out images that were compared are training images too: figures of %s are too good",
            shared, compared, config.data.val_data,
        )  # fmt: skip


def build_parts(config: Config, processes: Processes, fresh: bool = True) -> RunParts:
    """Tokenizer, data and model of a configuration; the same weights on every rank and at every call.

    Args:
        fresh: no checkpoint is resumed.

    Raises:
        ValueError: what was asked for cannot be; the message says what to write instead.
    """
    vision_config = vision_config_of(config)
    tokenizer = build_run_tokenizer(config, processes, fresh)
    image_size = config.vision.image_size or (vision_config or {}).get("image_size", 224)
    normalisation = normalisation_of(config, vision_config)
    processor = BitGenProcessor(
        tokenizer, image_size, config.model.max_seq_len, max_image_pixels=config.data.max_image_pixels, **normalisation
    )
    data = config.data
    pairs = build_training_dataset(config, processor) if data.train_data is not None else None
    val = build_dataset(config, data.val_data, "val", processor) if data.val_data is not None else None
    if val is not None and pairs is not None and val.feature_shape != pairs.feature_shape:
        raise ConfigError(
            f"val_data {data.val_data} holds features of {val.feature_shape}, train_data of {pairs.feature_shape}: "
            "prepare both with the same encoder."
        )
    if val is not None:
        encoders = [encoder_of(val), *map(encoder_of, getattr(pairs, "datasets", [pairs]))]
        if len(set(filter(None, encoders))) > 1:
            here, there = (printable(one, 100) for one in list(dict.fromkeys(filter(None, encoders)))[:2])
            raise ConfigError(
                f"val_data {data.val_data} holds features of the encoder {here}, train_data of {there}: prepare both "
                "with the same encoder."
            )
        _refuse_trained_on(config, pairs, val)
    train: TrainingPairs | TextAndPairs | None = pairs
    text_val = None
    if data.text_data is not None:
        text = build_text(config, data.text_data, tokenizer)
        assert not isinstance(pairs, StreamDataset)
        train = TextAndPairs(text, pairs, data.text_ratio, config.training.text_batch_size)
        text_val = build_text(config, data.text_val_data, tokenizer) if data.text_val_data is not None else None
        if text_val is not None and text_val.fingerprint() == text.fingerprint():
            raise ConfigError(
                f"text_val_data {data.text_val_data} holds the training text itself, so its figures would say nothing. "
                "Write the --val_output of data_prep/babylm_text.py, or leave text_val_data out."
            )
    seed_everything(config.training.seed)  # the same new weights on every rank
    # A trained tokenizer may stay below the vocabulary asked for; rows that no token reaches would never train.
    vocab_size = min(config.model.vocab_size, vocabulary_size(tokenizer)) if config.data.tokenizer == "train" else None
    shape = pairs.feature_shape if pairs is not None else (config.vision.feature_tokens, config.vision.feature_dim)
    model_config = model_config_of(config, vision_config, shape, vocab_size, normalisation, tokenizer)
    model = build_untrained(config, vision_config, model_config)
    if config.training.init_from is not None:
        start_from(model, tokenizer, config.training.init_from)
    assert train is not None
    return RunParts(tokenizer, train, val, text_val, model)
