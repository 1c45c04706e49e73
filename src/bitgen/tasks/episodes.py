"""Learning to speak from a memory: a trained model, whose part for it alone is trained, on episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitgen.config import Config, ConfigError
from bitgen.config.schema import CONFIG_FILE
from bitgen.config.stage1 import NO_CAPTIONER
from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import EpisodeDataset, EpisodeMaker, SceneEpisodes, collate_episode
from bitgen.data.episodes.photos import STRANGERS, PhotoEpisodes
from bitgen.data.loader_source import LoaderSource
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.dataset import ScenesDataset
from bitgen.data.word_count import WordCounter
from bitgen.machine.devices import resolve_precision
from bitgen.machine.ranks import Processes
from bitgen.memory.answering import Answer, answer_episode, measures, score
from bitgen.model.configuration_bitgen import BitGenConfig
from bitgen.model.parameter_roles import MATRIX, READER
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.objectives.recall import RecallObjective
from bitgen.protocols import HeldOutResult, Objective, Run
from bitgen.show.parameters import count_parameters
from bitgen.show.tables import format_markdown
from bitgen.stages import Group, Stage
from bitgen.tasks.stage1 import banner_rows, fingerprints, model_config_text
from bitgen.tasks.stage1_parts import FEATURES, build_parts
from bitgen.trained import CAPTIONS, MATCHING, RETRIEVAL, open_model
from bitgen.training.budget import planned

# Held-out episodes of a validation, and what each teaches.
_EPISODES, _TAUGHT, _SHOWN = 8, 16, 12
_LEARNED_BY = {CAPTIONS: "text_loss_weight", MATCHING: "itm_weight", RETRIEVAL: "contrastive_weight"}


class Episodes:
    """The task that ``recall_weight`` asks for."""

    def build(self, config: Config, ranks: Processes, fresh: bool) -> Run:
        """See ``protocols.Task``.

        Raises:
            ValueError: what was asked for cannot be; the message says what to write instead.
        """
        if config.data.train_data is None:
            raise ConfigError("train_data is not set. Write scenes, or the folder that the model of init_from saw.")
        if fresh and config.training.init_from is None:  # nor is there a checkpoint to resume
            raise ConfigError(NO_CAPTIONER)
        parts = build_parts(config if fresh else config.replace(init_from=None), ranks, fresh)
        objective = RecallObjective(parts.model, _temperature(config, fresh), config.episodes.recall_weight)
        precision = resolve_precision(config.training.precision, ranks.device)
        pairs, settings = parts.train, config.episodes
        if not isinstance(pairs, PairDataset):  # neither streamed nor text: the settings were checked
            raise ConfigError(f"train_data is {config.data.train_data}, but episodes are made of one source. Name one.")
        processor = pairs.processor
        size = max(1, pairs.image_count // config.episodes.picture_queries)  # about one query a picture
        maker = episodes_of(config, pairs, processor, held_out=False)
        data = EpisodeDataset(maker, processor, size, config.training.seed, parts.model.config.as_taught)
        source = LoaderSource(
            data,
            data.batch_sampler(1, ranks.rank, ranks.world_size),
            collate_episode,
            WordCounter(parts.tokenizer),
            config.training.grad_accum_steps,
            config.data.num_workers,
            ranks.device.type == "cuda",
            # Of pictures; one that cannot be used costs its episode.
            min(1.0, config.data.max_bad_fraction * (settings.episode_pictures + settings.picture_queries)),
        )
        stage = plan(config, source)
        table = count_parameters(parts.model, stage=stage, roles=objective.roles())
        if ranks.is_main:
            table.write(config.output.output_dir)
        validator = _Validator(config, parts.val, parts.model.config.as_taught) if parts.val is not None else None
        network = parts.model.config
        return Run(
            objective,
            source,
            stage,
            validator,
            {
                "episodes an epoch": source.size,
                "seed": config.training.seed,
                "optimizer": config.training.optimizer,
                "grad_accum_steps": config.training.grad_accum_steps,
                "recall_tokens": settings.recall_tokens,
                "episode_pictures": settings.episode_pictures,
                "episode_sentences": settings.episode_sentences,
                "picture_queries": settings.picture_queries,
                "sentence_queries": settings.sentence_queries,
                **_of_the_tokenizer(network),
                **source.identity(),
            },
            {CONFIG_FILE: config.to_yaml(), "config.json": model_config_text(parts.model)},
            fingerprints(config, parts),
            [
                *banner_rows(ranks, precision),
                ("training data", f"{config.data.train_data}: {source.describe()}"),
                ("steps", f"{stage.steps:,} ({stage.steps_per_epoch:,} an epoch)"),
                ("starts from", config.training.init_from or "its checkpoint"),
                ("checkpoints", config.output.output_dir),
            ],
            table.to_text(),
            score_text="answered right: {:.1f}%".format,
            next_commands=_next_commands(config),
        )


def _temperature(config: Config, fresh: bool) -> float:
    """Of the contrastive loss, which this run does not change: as the model it starts from has it.

    Raises:
        ConfigError: the weights of the losses say otherwise than that model what was learned.
    """
    path = config.training.init_from
    if not fresh or path is None:
        return config.objective.temperature
    source = open_model(path)
    for what, name in _LEARNED_BY.items():
        weight, learned = getattr(config.objective, name), what not in source.untrained
        if bool(weight) != learned:
            raise ConfigError(
                f"{name} is {weight:g}, but the model of init_from {path} has {'' if learned else 'never '}learned "
                f"{what}, and this run changes nothing of it. Write {name} as in the config.yaml of that model."
            )
    return source.temperature


def episodes_of(config: Config, data: PairDataset, processor: BitGenProcessor, held_out: bool) -> EpisodeMaker:
    """What makes the episodes of a configuration, of training or held-out ones.

    Args:
        data: the split's pictures; of the built-in scenes none is used, as each episode draws its own.

    Raises:
        ConfigError: pictures of which there is no other view to ask about.
    """
    episodes, seed = config.episodes, config.training.seed
    sizes: dict[str, Any] = {"pictures": _TAUGHT, "sentences": _TAUGHT, "held_out": True}
    if not held_out:
        sizes = {
            "pictures": episodes.episode_pictures,
            "sentences": episodes.episode_sentences,
            "picture_queries": episodes.picture_queries,
            "sentence_queries": episodes.sentence_queries,
        }
    if isinstance(data, ScenesDataset):
        return SceneEpisodes(processor, seed, **sizes)
    if data.kind == FEATURES:
        if data.image_count < sizes["pictures"] + STRANGERS:
            remedy = (
                f"Write the folder of a split with at least {_TAUGHT + STRANGERS}, or leave val_data out."
                if held_out
                else f"Write episode_pictures {max(1, data.image_count - STRANGERS)} or less."
            )
            raise ConfigError(
                f"{data.reader.folder} has {data.image_count} pictures, fewer than an episode takes. {remedy}"
            )
        return PhotoEpisodes(data, processor, seed, **sizes)
    name = "val_data" if held_out else "train_data"
    raise ConfigError(
        f"{name} is {getattr(config.data, name)}, but episodes are made of the built-in scenes or of features computed "
        f"earlier. Write {name} scenes, or a folder of features that data_prep/flickr8k.py --features writes."
    )


def plan(config: Config, source: LoaderSource) -> Stage:
    """One phase, in which recall trains."""
    training = config.training
    rate, decay = training.learning_rate, training.weight_decay
    groups = [Group("new", ("recall/*",), rate, decay=decay)]
    if training.optimizer != "adamw":
        peak, kind = training.muon_learning_rate, training.optimizer
        groups[:0] = [
            Group("matrix", (f"recall/{MATRIX}",), peak, decay=decay, optimizer=kind),
            Group("reader", (f"recall/{READER}",), peak, config.episodes.reader_lr_factor, decay=decay, optimizer=kind),
        ]
    return planned("episodes", tuple(groups), source, training)


def _of_the_tokenizer(network: BitGenConfig) -> dict[str, Any]:
    """What the network's configuration holds of its tokenizer. What is not set is left out: earlier runs can go on."""
    found = {"recall_space": network.recall_space, "recall_behind_space": network.recall_behind_space or None}
    return {name: value for name, value in found.items() if value is not None}


class _Validator:
    """Teaches held-out episodes and puts their queries."""

    def __init__(self, config: Config, pairs: PairDataset, as_taught: Callable[[str], str]) -> None:
        maker = episodes_of(config, pairs, pairs.processor, held_out=True)
        self.data = EpisodeDataset(maker, pairs.processor, _EPISODES, config.training.seed, as_taught)

    def __call__(self, objective: Objective, phase: int) -> HeldOutResult:
        assert isinstance(objective, RecallObjective)
        objective.eval()
        answers: list[Answer] = []
        for index in range(_EPISODES):
            answers += answer_episode(objective, self.data, self.data.maker.episode(SampleKey(index)))
        found = measures(answers)
        right, error = score(answers)
        rows = [(answer.query.prompt or "(a picture)", answer.query.answer, answer.said) for answer in answers[:_SHOWN]]
        return HeldOutResult(
            {f"val/{name}": value for name, value in {**found, "score": right, "score_error": error}.items()},
            {},
            {"samples/said": format_markdown(("asked", "right", "said"), rows)},
            right,
            error,
        )


def _next_commands(config: Config) -> list[tuple[str, str]]:
    run = config.output.output_dir
    if config.vision.vision_encoder == FEATURES:  # which cannot look at files of pictures
        return [
            ("tell it something", f'python src/memory.py --model {run} teach --text "Blick belongs to Anna"'),
            ("and ask for it", f'python src/ask.py --model {run} --memory {run}.memory --question "who owns Blick?"'),
        ]
    return [
        ("teach it something", f'python src/memory.py --model {run} teach PICTURE "this is Rex"'),
        ("and let it speak", f"python src/caption.py OTHER_PICTURE --model {run} --memory {run}.memory"),
    ]
