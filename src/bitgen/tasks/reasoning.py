"""Stage 2: a captioner learns to answer questions about pictures, with rationales and boxes."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from bitgen.config import Config, ConfigError
from bitgen.config.reasoning_rules import EXTEND
from bitgen.config.schema import CONFIG_FILE
from bitgen.config.sources import BUILT_IN_QUESTIONS, SCENES
from bitgen.data.loader_source import LoaderSource
from bitgen.data.questions.dataset import QuestionCollator, QuestionDataset
from bitgen.data.questions.extended_tokenizer import extended_tokenizer
from bitgen.data.questions.marked_text import MARKS, MarkedTokens
from bitgen.data.questions.records import QuestionFolder
from bitgen.data.text_shards import tokenizer_sha256
from bitgen.data.tokenizer import keep_tokenizer, kept_meta, load_tokenizer, vocabulary_size
from bitgen.data.word_count import WordCounter
from bitgen.evaluation.asked import first_questions
from bitgen.machine.devices import forbid_tf32, resolve_precision
from bitgen.machine.randomness import seed_everything
from bitgen.machine.ranks import Processes, main_first
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.objectives.policy_gradient import PolicyGradientObjective
from bitgen.objectives.reasoning import ReasoningObjective
from bitgen.protocols import Run
from bitgen.show.parameters import count_parameters
from bitgen.tasks.reasoning_data import asked_pictures, fingerprints_of, validator_of
from bitgen.tasks.rollouts import RolloutSettings, RolloutSource, reward_of
from bitgen.tasks.stage1 import banner_rows, groups, model_config_text, tower_optimizer
from bitgen.tasks.stage1_parts import (
    build_untrained,
    model_config_of,
    normalisation_of,
    tokenizer_beside,
    vision_config_of,
)
from bitgen.tasks.start_from import start_from, trained_tokenizer
from bitgen.trained import TOKENIZER, TOKENIZER_FOLDER
from bitgen.training.budget import planned

_TEXTS = 4000  # pictures of scenes whose questions a tokenizer learns its new words from
# What a run that goes on may change.
_FREE = ("question_val_data", "idle_steps")


class Reasoning:
    """The task that ``question_data`` asks for."""

    def build(self, config: Config, ranks: Processes, fresh: bool) -> Run:
        """See ``protocols.Task``.

        Raises:
            ValueError: what was asked for cannot be; the message says what to write instead.
        """
        config = _as_learned(config)
        settings, training = config.reasoning, config.training
        tokenizer = build_stage2_tokenizer(config, ranks, fresh)
        vision_config = vision_config_of(config)
        image_size = config.vision.image_size or (vision_config or {}).get("image_size", 224)
        normalisation = normalisation_of(config, vision_config)
        processor = BitGenProcessor(
            tokenizer, image_size, config.model.max_seq_len, max_image_pixels=config.data.max_image_pixels,
            **normalisation,
        )  # fmt: skip
        seed_everything(training.seed)  # the same new weights on every rank
        model_config = model_config_of(config, vision_config, None, vocabulary_size(tokenizer), normalisation)
        model = build_untrained(config, vision_config, model_config)
        temperature = config.objective.temperature
        if fresh and training.init_from is not None:
            temperature = start_from(model, tokenizer, training.init_from, extended=True).temperature
        reinforced = settings.reinforcement != "none"
        objective = (PolicyGradientObjective if reinforced else ReasoningObjective)(model, temperature)
        precision = resolve_precision(training.precision, ranks.device)
        if reinforced:
            forbid_tf32()  # in which the sampler and the update would differ
        tokens = MarkedTokens(tokenizer)
        data = QuestionDataset(
            asked_pictures(config, processor), tokens, config.model.max_seq_len, settings.answer_weight,
            settings.rationale == "dots", training.seed,
        )  # fmt: skip
        data.check_what_is_asked(says=ranks.is_main)
        source: LoaderSource | RolloutSource
        if reinforced:
            assert isinstance(objective, PolicyGradientObjective)
            source = rollouts_of(config, objective, processor, data, ranks)
        else:
            source = LoaderSource(
                data,
                data.batch_sampler(training.batch_size, ranks.rank, ranks.world_size),
                QuestionCollator(tokenizer.pad_token_id, settings.picture_shown),
                WordCounter(tokenizer),
                training.grad_accum_steps,
                config.data.num_workers,
                ranks.device.type == "cuda",
                config.data.max_bad_fraction,
            )
        adapted = 0 if model.vision_encoder is not None else None
        stage = planned("reasoning", groups(config, adapted), source, training)
        table = count_parameters(model, stage=stage, roles=objective.roles())
        if ranks.is_main:
            table.write(config.output.output_dir)
        return Run(
            objective,
            source,
            stage,
            validator_of(config, processor),
            {
                "pictures an epoch": source.size,
                "batch_size": training.batch_size,
                "seed": training.seed,
                "optimizer": training.optimizer,
                "grad_accum_steps": training.grad_accum_steps,
                **{name: value for name, value in vars(settings).items() if name not in _FREE},
                # A folder is known by its content, wherever it lies (``fingerprints_of``).
                "question_data": settings.question_data if settings.question_data in BUILT_IN_QUESTIONS else "a folder",
                **source.identity(),
            },
            {CONFIG_FILE: config.to_yaml(), "config.json": model_config_text(model)},
            {
                TOKENIZER: tokenizer_sha256(load_tokenizer(Path(config.output.output_dir) / TOKENIZER_FOLDER)),
                **fingerprints_of(data.pictures),
                **tower_optimizer(config),
            },
            [
                *banner_rows(ranks, precision),
                ("questions", f"{settings.question_data}: {source.describe()}, "
                              f"{settings.questions_per_picture} questions each"),
                ("steps", f"{stage.steps:,} ({stage.steps_per_epoch:,} an epoch)"),
                ("starts from", training.init_from or "random weights"),
                ("checkpoints", config.output.output_dir),
            ],
            table.to_text(),
            score_text="answered right: {:.1f}%".format,
            next_commands=_next_commands(config),
        )  # fmt: skip


def _as_learned(config: Config) -> Config:
    """With ``rationale none`` where no question has one: then none is asked for in training, validation or later.

    Raises:
        ValueError: a folder that cannot be read.
    """
    settings, source = config.reasoning, config.reasoning.question_data
    if settings.rationale != "clauses" or settings.reinforcement != "none" or source is None:
        return config
    is_given = source in BUILT_IN_QUESTIONS or QuestionFolder(source).has_rationales
    return config if is_given and settings.rationale_share else config.replace(rationale="none")


def rollouts_of(
    config: Config,
    objective: PolicyGradientObjective,
    processor: BitGenProcessor,
    supervised: QuestionDataset,
    ranks: Processes,
) -> RolloutSource:
    """The model's own replies, as the settings ask for them."""
    settings, training = config.reasoning, config.training
    drawn = RolloutSettings(
        training.batch_size, settings.rollout_group, settings.rollout_tokens,
        (settings.rollout_min_hops, settings.max_hops), settings.max_objects, settings.supervised_pictures,
        settings.supervised_weight, settings.reinforcement == "star", settings.idle_steps,
    )  # fmt: skip
    steps = max(config.data.scenes_train // (training.batch_size * ranks.world_size), 1)
    reward = reward_of(settings.process_weight)
    return RolloutSource(objective, processor, supervised, reward, drawn, steps, ranks, training.seed)


def build_stage2_tokenizer(config: Config, ranks: Processes, fresh: bool) -> PreTrainedTokenizerFast:
    """The tokenizer of the model of ``init_from`` with the marks and words of stage 2, kept in the run's folder.

    Raises:
        ConfigError: there is no model to take it from.
    """
    folder = Path(config.output.output_dir) / TOKENIZER_FOLDER
    with main_first(ranks):
        if not fresh:
            beside = None if folder.is_dir() else tokenizer_beside(config.training.resume)
            if beside is not None:  # the run goes on in another folder
                keep_tokenizer(load_tokenizer(beside), folder, kept_meta(beside) or {})
            return load_tokenizer(folder)
        if config.training.init_from is None:
            raise ConfigError("init_from is none, but stage 2 goes on from a model of stage 1. Name its run.")
        base = trained_tokenizer(config.training.init_from)
        asked, most = config.reasoning.question_data, config.model.vocab_size
        record = {"spec": EXTEND, "base": tokenizer_sha256(base), "texts": asked, "vocab_size": most}
        if not folder.is_dir() or kept_meta(folder) != record:  # one that a run left which came no further
            texts = asked_pictures(config, BitGenProcessor(base)).texts(_TEXTS)
            keep_tokenizer(extended_tokenizer(base, MARKS, texts, most), folder, record, replace=True)
        return load_tokenizer(folder)


def _next_commands(config: Config) -> list[tuple[str, str]]:
    run, data = config.output.output_dir, config.reasoning.question_val_data or config.reasoning.question_data
    tasks = "reasoning"
    if data is not None and data not in BUILT_IN_QUESTIONS:  # a folder may ask for words, boxes or both
        folder = QuestionFolder(data)
        kinds = (("reasoning", False), ("grounding", True))
        tasks = ",".join(name for name, boxes in kinds if first_questions(folder, 1, boxes))
    how = "how good it is" if config.reasoning.question_val_data else "how well it knows what it was trained on"
    found = [(how, f"python src/evaluate.py --checkpoint {run} --data {data} --task {tasks}")]
    if config.reasoning.question_data == SCENES:
        ask = f'python src/ask.py "what shape is the thing just left of the star?" --scene 1 --model {run}'
        found.append(("ask it about a scene", f"{ask} --picture boxes.png"))
    return found
