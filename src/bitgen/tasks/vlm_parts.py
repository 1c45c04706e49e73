"""From the configuration of a stage to what it is made of: tokenizer, data, and the model before its first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitgen.checkpoint.format import resume_candidates, split_state
from bitgen.checkpoint.manifest import CheckpointError
from bitgen.config.sources import SCENES
from bitgen.config.values import ConfigError
from bitgen.config.vlm import LANGUAGE, VISION, VlmConfig
from bitgen.data.conversations.dataset import ConversationDataset
from bitgen.data.conversations.opening import one_an_image
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import ConversationReader, Conversations
from bitgen.data.mixing import encoder_of
from bitgen.data.records import RecordReader
from bitgen.data.scenes.dataset import scene_captions
from bitgen.data.tokenizer import build_tokenizer
from bitgen.guards.printable import printable
from bitgen.machine.randomness import seed_everything
from bitgen.machine.ranks import Processes, main_first
from bitgen.show.tables import format_table
from bitgen.tasks.fingerprints import fingerprint_of_readers
from bitgen.tasks.vlm_data import collator_of, conversations_of, dataset_of, most_pictures, sampler_of
from bitgen.tasks.vlm_description import ConnectorPlan, describe
from bitgen.trained import TOKENIZER_FOLDER
from bitgen.trained_vlm import is_exported_vlm, own_weights, read_description, vlm_folder
from bitgen.vlm.adapters import renorm
from bitgen.vlm.assembly import Assembled, assemble
from bitgen.vlm.connectors import ConnectorConfig
from bitgen.vlm.description import Description
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.vision import FEATURES, OURS, RANDOM

logger = logging.getLogger(__name__)

_ENCODER = "encoder (by its weights)"


@dataclass(frozen=True)
class VlmParts:
    """All that a stage is made of. ``val_rows``: held-out samples whose answers are generated, one an image."""

    tokenizer: PreTrainedTokenizerBase
    train: ConversationDataset
    val: ConversationDataset | None
    val_rows: list[int]
    sampler: Any
    collate: Callable
    model: VisionLanguageModel
    description: dict[str, Any]
    fingerprints: dict[str, str]
    table: str
    rows: list[tuple[str, object]]


def build_parts(config: VlmConfig, ranks: Processes, fresh: bool) -> VlmParts:
    """Everything of a stage; the same weights on every rank and at every call.

    Args:
        fresh: no checkpoint is resumed.

    Raises:
        ValueError: what was asked for cannot be; the message says what to write instead.
    """
    before = _folder_before(config, fresh)
    source = conversations_of(config, config.data.train_data, "train")
    held_out = conversations_of(config, config.data.val_data, "val") if config.data.val_data is not None else None
    if held_out is not None and held_out.feature_shape != source.feature_shape:
        raise ConfigError(
            f"val_data {config.data.val_data} holds features of {held_out.feature_shape}, train_data of "
            f"{source.feature_shape}: prepare both with the same encoder."
        )
    encoders = [encoder_of(source), encoder_of(held_out)]
    if None not in encoders and encoders[0] != encoders[1]:
        there, here = (printable(each, 100) for each in encoders)
        raise ConfigError(
            f"val_data {config.data.val_data} holds features of the encoder {here}, train_data of {there}: prepare "
            "both with the same encoder."
        )
    own_tokenizer = _own_tokenizer(config, ranks, before)
    shown = min(config.data.num_frames, source.most_pictures)
    most = most_pictures(config, source)
    if before is not None:  # a stage on single pictures forgets no videos
        was = read_description(before)
        shown = max(shown, was.speech.num_frames)
        most = max(most, 1 if was.connector is None else ConnectorConfig.from_dict(was.connector).frames)
    seed_everything(config.training.seed)  # the same new weights on every rank
    made = assemble(
        describe(config, source.feature_shape, own_tokenizer, before, shown),
        None if config.connector.connector == "none" else ConnectorPlan(config, most),
        checkpointing=config.language.language_checkpointing,
        device=ranks.device,
    )
    _check_positions(config, made)
    tokenizer = own_tokenizer or made.tokenizer
    assert tokenizer is not None
    if fresh and before is not None:
        start_from(made, before)
    train = dataset_of(config, tokenizer, made.model, source, is_training=True)
    val = dataset_of(config, tokenizer, made.model, held_out, is_training=False) if held_out is not None else None
    return VlmParts(
        tokenizer,
        train,
        val,
        one_an_image(held_out) if held_out is not None else [],
        sampler_of(config, train, ranks),
        collator_of(config, tokenizer, made.model),
        made.model,
        made.description.to_dict(),
        _fingerprints(made.description) | _fingerprint_of_data(source),
        _parameters(made.model, config.trained_parts),
        _rows(made),
    )


def _check_positions(config: VlmConfig, made: Assembled) -> None:
    """Raise :class:`ConfigError` where sequences may be longer than the language model was made for."""
    most, asked = made.model.language.config.max_position_embeddings, config.language.max_length
    if asked > most:
        raise ConfigError(
            f"max_length is {asked}, and the language model {printable(config.language.language_model, 200)} was made "
            f"for {most} positions. Write max_length {most} or less."
        )


# ---- what the stage before left ----


def _folder_before(config: VlmConfig, fresh: bool) -> Path | None:
    """The checkpoint whose model this stage has: its own where it goes on, else that of ``init_from``; None: none.

    Raises:
        ConfigError: ``init_from`` names no model of this kind.
    """
    if not fresh:
        for folder in resume_candidates(config.training.resume or "auto", config.output.output_dir):
            with suppress(CheckpointError):  # the run passes over what is damaged, and so does this
                read_description(folder)
                return folder
        return None
    if config.training.init_from is None:
        return None
    try:
        return vlm_folder(config.training.init_from)
    except ValueError as error:
        raise ConfigError(f"init_from {error}") from error


def start_from(made: Assembled, folder: Path) -> None:
    """Give a new model the weights of the one before it: of each part that it has, all of them.

    Raises:
        ConfigError: a part is another one there than here.
    """
    then, now = read_description(folder), made.description
    meant = _meaning(then)
    if VISION in then.own_parts:  # then all its weights are taken, and the connector keeps its encoder
        meant.pop(_ENCODER, None)
    # Captions have one picture and conversations may have more: where that changes weights, their shapes differ. And
    # what a run drops out, or how large weights began, is no property of the weights that it leaves.
    same = [
        *((name, there, _meaning(now).get(name)) for name, there in meant.items()),
        ("connector", _comparable(then.connector), _comparable(now.connector)),
        ("language model", then.language.name, now.language.name),
        ("its weights", _published(then), _published(now)),
        ("adapter", _without("dropout", then.adapter), _without("dropout", now.adapter)),
    ]
    for name, there, here in same:
        if there is not None and here is not None and there != here:
            raise ConfigError(
                f"init_from {folder}: its {name} is {there}, and this stage's is {here}. Make them alike."
            )
    if then.adapter is not None and now.adapter is None:
        raise ConfigError(
            f"init_from {folder} has adapters and this stage has none, which would lose what they learned. Keep "
            f"adapter {then.adapter['kind']}, or merge them first (src/export.py --merge_lora True)."
        )
    if then.connector is not None and now.connector is None:
        kind = printable(then.connector.get("kind"), 40)
        raise ConfigError(
            f"init_from {folder} has a connector and this stage has none, which would lose what connector and encoder "
            f"learned. Keep connector {kind}: what trains is chosen by trains."
        )
    # Weights under an adapter have another name than without one.
    places = {_plain(name): name for name in split_state(made.model, ())[0]}
    ours = {_plain(name): tensor for name, tensor in split_state(made.model, ())[0].items()}
    theirs = {_plain(name): tensor for name, tensor in own_weights(folder).items()}
    taken: dict[str, Tensor] = {}
    for part in sorted({made.model.part_of(name) for name in theirs}):
        there = {name: tensor for name, tensor in theirs.items() if made.model.part_of(name) == part}
        here = {name: tensor for name, tensor in ours.items() if made.model.part_of(name) == part}
        if not here and part == VISION:
            raise ConfigError(
                f"init_from {folder} has changed the encoder, and this stage takes it as it was, which would lose what "
                "was learned. Keep the vision_tuning of that run: what trains is chosen by trains."
            )
        _suit_frames(there, here)
        differing = [n for n in {**there, **here} if n not in there or n not in here or there[n].shape != here[n].shape]
        if differing:
            raise ConfigError(
                f"init_from {folder} holds another {part}: {len(differing)} of its weights differ in shape or are "
                f"missing, first {sorted(differing)[0]}. Give this stage the settings of its config.yaml."
            )
        taken |= there
    made.model.load_own({places[name]: tensor for name, tensor in taken.items()})
    if then.adapter is None and now.adapter is not None:
        renorm(made.model.language)
    logger.info("starting from the weights of %s", folder)


def _suit_frames(there: dict[str, Tensor], here: Mapping[str, Tensor]) -> None:
    """Give a connector its rows for frames, where this run has more or fewer of them: those that there are, and zeros,
    with which it is at first what it was without them."""
    for name, fresh in here.items():
        known = there.get(name)
        if name.endswith(".frame_embeddings") and (known is None or known.shape[1:] == fresh.shape[1:]):
            there[name] = torch.zeros_like(fresh)
            if known is not None:
                there[name][: len(known)] = known[: len(fresh)]


def _meaning(description: Description) -> dict[str, Any]:
    """What changes no weight's shape, but what weights mean: a connector reads one layer of one encoder, say."""
    found = {"number of heads of the language model": (description.language.config or {}).get("num_attention_heads")}
    vision = description.vision
    if vision is not None and vision.config.get("model_type") != FEATURES:
        found |= {
            _ENCODER: (vision.config.get(OURS) or {}).get("weights"),
            "select_layer": vision.select_layer,
            "number of heads of the encoder": vision.config.get("num_attention_heads"),
            "alpha of the encoder's adapters": vision.adapter_alpha if vision.tuning == "lora" else None,
        }
    return found


def _comparable(connector: dict[str, Any] | None) -> dict[str, Any] | None:
    found = _without("frames", connector)
    return found if found is None else {**found, "options": _without("token_std", found.get("options"))}


def _without(name: str, settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of a part but one."""
    return None if settings is None else {other: value for other, value in settings.items() if other != name}


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _published(description: Description) -> str | None:
    return None if description.language.config is not None else description.language.weights_sha256


# ---- the tokenizer of a language model that is trained from nothing ----


def _own_tokenizer(config: VlmConfig, ranks: Processes, before: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a ``random`` language model: the one of the stage before, else trained on the captions; None:
    the language model brings one."""
    if config.language.language_model != RANDOM:
        return None
    folder = Path(config.output.output_dir) / TOKENIZER_FOLDER
    kept = folder
    if before is not None:  # beside its checkpoints, and in an export
        kept = before if is_exported_vlm(before) else before.parent / TOKENIZER_FOLDER
    with main_first(ranks):
        if kept.is_dir():
            return build_tokenizer(str(kept), None, config.language.language_vocab_size, folder)
        if config.data.train_data != SCENES:
            raise ConfigError(
                "language_model is 'random', whose tokenizer is trained on the built-in scenes. Write train_data "
                "scenes, or the folder of a language model."
            )
        captions = scene_captions("train", config.data.scenes_train, config.training.seed)
        return build_tokenizer("train", captions, config.language.language_vocab_size, folder)


# ---- what is said of it ----


def _fingerprints(description: Description) -> dict[str, str]:
    """What must be the same on resume, where its weights lie elsewhere."""
    found = {}
    if LANGUAGE not in description.own_parts and description.language.weights_sha256 is not None:
        found["language model"] = description.language.weights_sha256
    if description.vision is not None and VISION not in description.own_parts:
        weights = (description.vision.config.get(OURS) or {}).get("weights")
        if weights is not None:
            found["vision encoder"] = weights
    return found


def _fingerprint_of_data(source: Conversations) -> dict[str, str]:
    """What the training data is by its content; of what is drawn nothing."""
    if isinstance(source, ConversationReader):
        return {"training data": source.fingerprint}
    if isinstance(source, PairConversations) and isinstance(source.reader, RecordReader):
        return {"training data": fingerprint_of_readers([source.reader])}
    return {}


def _parameters(model: VisionLanguageModel, trained: tuple[str, ...]) -> str:
    """The table of parameters by part, and how many train."""
    total: dict[str, int] = {}
    training: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part, reached = (role := model.role_of(name, parameter)).part, role.reached
        total[part] = total.get(part, 0) + parameter.numel()
        training[part] = training.get(part, 0) + (parameter.numel() if part in trained and reached else 0)
    rows = [(part, f"{count:,}", f"{training[part]:,}") for part, count in total.items()]
    rows.append(("total", f"{sum(total.values()):,}", f"{sum(training.values()):,}"))
    return format_table(("part", "parameters", "trained"), rows, title="Parameters")


def _rows(made: Assembled) -> list[tuple[str, object]]:
    description, connector = made.description, made.model.connector
    rows: list[tuple[str, object]] = [("language model", description.language.name)]
    if made.model.tower is not None and connector is not None:
        spec = made.model.tower.spec
        rows.insert(0, ("vision encoder", f"{spec.source}: {spec.tokens} tokens x {spec.width}"))
        rows.append(("connector", f"{connector.config.kind}: {connector.tokens(1)} tokens a picture"))
    return rows
