"""Evaluate a checkpoint: retrieval, image-text matching, the memory, captions, BabyLM, GLUE; JSON and a table."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from bitgen.commands.evaluate_babylm import evaluate_language
from bitgen.commands.evaluate_by_kind import (
    main_of_parts,
    main_of_reasoning,
    naming_bad_records,
    refuse_flags_of_parts,
    say_and_write,
)
from bitgen.commands.evaluate_glue import check_glue_files, evaluate_glue_tasks, glue_table
from bitgen.config import Config, ConfigError, exit_on_config_error
from bitgen.config.sources import SCENES
from bitgen.data.dataset import PairDataset
from bitgen.data.scenes.dataset import ScenesDataset
from bitgen.data.scenes.swapped import SwappedScenes
from bitgen.evaluation.captioning import (
    Captioned,
    caption_dataset,
    check_references,
    coco_results,
    draw_sheet,
    pictures_of_sheet,
)
from bitgen.evaluation.encode import Runner
from bitgen.evaluation.flags import (
    BABYLM,
    CAPTIONING,
    GLUE,
    GROUNDING,
    MATCHING,
    MEMORY,
    REASONING,
    RERANK_TOP_K,
    RETRIEVAL,
    parse_flags,
)
from bitgen.evaluation.matching import (
    Captioner,
    RerankWeights,
    default_cosine_weight,
    matching_metrics,
    rerank_metrics,
)
from bitgen.evaluation.memory_metrics import memory_metrics
from bitgen.evaluation.outputs import check_outputs
from bitgen.evaluation.results import Results, write_results
from bitgen.evaluation.retrieval import rank_split, retrieval_metrics
from bitgen.evaluation.swapped_words import swapped_metrics
from bitgen.evaluation.tables import tables
from bitgen.machine.devices import Precision, choose_device, resolve_precision
from bitgen.trained import CAPTIONS, Trained, open_model
from bitgen.trained_vlm import is_vlm

logger = logging.getLogger("evaluate")

# What a model must have learned for the figures of a task to mean something: keys of `Trained.untrained`. Re-ranking
# is part of retrieval, and cosine of matching.
_NEEDS = {RETRIEVAL: (RETRIEVAL, MATCHING), MATCHING: (RETRIEVAL, MATCHING), CAPTIONING: (CAPTIONS,)}

# Pairs of scenes whose captions have the same words: one standard error of a score is at most 3.5 points.
SWAPPED_PAIRS = 200


def device_of(flags: argparse.Namespace) -> torch.device:
    """Where to evaluate.

    Raises:
        ConfigError: the flags ask for a GPU where there is none.
    """
    device = choose_device(flags.device)
    if device.type != "cuda" and flags.precision == "fp16":
        raise ConfigError("--precision fp16 needs a GPU. Write --precision auto.")
    return device


def opened(flag: str, path: str) -> Trained:
    """The model that a flag names.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    try:
        trained = open_model(path)
    except ValueError as error:
        raise ConfigError(f"--{flag} {error}") from error
    logger.info("%s %s", trained.kind, trained.folder)
    return trained


def warn_of_untrained(loaded: Trained, tasks: list[str]) -> None:
    """Say which of the figures asked for mean nothing."""
    needed = [what for task in tasks for what in _NEEDS.get(task, ())]
    for sentence in dict.fromkeys(loaded.untrained[what] for what in needed if what in loaded.untrained):
        logger.warning(sentence)


def load_split(source: str, loaded: Trained, max_images: int | None, scenes: Config | None = None) -> PairDataset:
    """The held-out split that `--data` names, as this model takes it.

    Args:
        scenes: whose built-in scenes these are, where that is another model's: a run's depend on its seed.

    Raises:
        ValueError: it cannot be read, or holds another kind of input than the checkpoint was trained on.
    """
    sizes, config, processor = loaded.model.config, scenes or loaded.config, loaded.processor
    dataset: PairDataset
    if source == SCENES:
        dataset = ScenesDataset(
            "val", min(config.data.scenes_val, max_images or config.data.scenes_val), config.training.seed, processor
        )
    else:
        dataset = PairDataset(source, processor, max_images=max_images)
    wanted = (
        f"features of {sizes.feature_tokens} x {sizes.feature_dim}, computed as its training data were"
        if sizes.takes_features
        else "images"
    )
    if (dataset.kind == "features") != sizes.takes_features:
        raise ConfigError(
            f"--data {source} holds {dataset.kind}, and this checkpoint takes {wanted}: name such a folder."
        )
    shape = dataset.feature_shape
    if shape is not None and sizes.takes_features and tuple(shape) != (sizes.feature_tokens, sizes.feature_dim):
        tokens, width = shape
        raise ConfigError(f"--data {source} holds features of {tokens} x {width}, and this checkpoint takes {wanted}.")
    return dataset


def how_to_run(
    loaded: Trained, dataset: PairDataset, device: torch.device, flags: argparse.Namespace
) -> tuple[Precision, int]:
    """The precision, and the number of processes that decode images."""
    precision = resolve_precision(flags.precision, device)
    if flags.num_workers is not None:
        return precision, flags.num_workers
    return precision, loaded.config.data.num_workers if dataset.kind == "images" else 0


def check_asked(loaded: Trained, dataset: PairDataset, tasks: list[str]) -> None:
    """Raise :class:`ConfigError` for a task that this model or split cannot have; before anything takes long."""
    if MATCHING in tasks and dataset.image_count < 2:
        raise ConfigError("matching needs at least two images: with one, no caption is wrong")
    if MEMORY in tasks and loaded.model.memory is None:
        raise ConfigError("this checkpoint has no memory (use_memory was False): leave memory out of --task")


def evaluate(
    loaded: Trained,
    dataset: PairDataset,
    device: torch.device,
    flags: argparse.Namespace,
    other: tuple[Trained, PairDataset] | None = None,
) -> Results:
    """All figures of retrieval, matching and memory asked for, by task.

    Args:
        other: the model of ``--captioner``, and the split as it takes it.
    """
    precision, workers = how_to_run(loaded, dataset, device, flags)
    model = loaded.model.to(device)
    runner = Runner(model, flags.batch_size, device, precision.autocast, workers)
    logger.info(
        "encoding %d images and %d captions on %s in %s",
        dataset.image_count,
        dataset.num_captions,
        device,
        precision.name,
    )
    with naming_bad_records():
        encoded = runner.encode(dataset)
    top_k = RERANK_TOP_K if flags.rerank_top_k is None else flags.rerank_top_k
    ranking = rank_split(encoded, top_k=max(top_k, 1), device=device)
    results: Results = {}
    weights = rerank_weights(flags, loaded.config, loaded.temperature)
    captioner = None
    if weights.text and {RETRIEVAL, MATCHING} & set(flags.task):
        captioner = Captioner(runner, encoded) if other is None else _captioner(*other, flags, device)
    if RETRIEVAL in flags.task:
        results[RETRIEVAL] = retrieval_metrics(encoded, ranking, flags.bootstrap)
        if top_k:
            logger.info(
                "re-ranking the best %d of each query by %s + %.3g x cosine + %.3g x captioner's log-likelihood ratio",
                top_k,
                "log-likelihood ratio" if loaded.config.model.itm_likelihood else "matching logit",
                *weights,
            )
            reranked = rerank_metrics(runner, encoded, ranking, weights, flags.bootstrap, captioner)
            if not loses_by_reranking(results[RETRIEVAL] | reranked) or flags.rerank_top_k is not None:
                results[RETRIEVAL] |= reranked
    if MATCHING in flags.task:
        results[MATCHING] = matching_metrics(runner, encoded, ranking, captioner)
        if isinstance(dataset, ScenesDataset):
            swapped = SwappedScenes(SWAPPED_PAIRS, loaded.config.training.seed, loaded.processor)
            results[MATCHING] |= swapped_metrics(runner, swapped)
    if MEMORY in flags.task or (MATCHING in flags.task and model.memory is not None):
        results[MEMORY] = memory_metrics(runner, encoded)
    return results


def loses_by_reranking(figures: dict[str, Any]) -> bool:
    """Whether R@1, over both directions, is lower after re-ranking than by cosine; then that is said."""
    cosine, after = ((figures[f"{prefix}t2i_R@1"] + figures[f"{prefix}i2t_R@1"]) / 2 for prefix in ("", "reranked_"))
    if after < cosine:
        logger.warning(
            "re-ranking ranks worse than cosine: mean R@1 %.1f instead of %.1f. Search by cosine alone; "
            "--rerank_top_k %d shows the re-ranked figures",
            after,
            cosine,
            RERANK_TOP_K,
        )
    return after < cosine


def rerank_weights(flags: argparse.Namespace, config: Config, temperature: float) -> RerankWeights:
    """What the flags say, else what fits the run, whose contrastive loss ended at ``temperature``; see ``--help``."""
    cosine, text = flags.rerank_cosine_weight, flags.rerank_text_weight
    objective, by_likelihood = config.objective, config.model.itm_likelihood
    writes = objective.text_loss_weight > 0 and not by_likelihood
    return RerankWeights(
        default_cosine_weight(by_likelihood, temperature, objective.itm_temperature) if cosine is None else cosine,
        text if text is not None else float(flags.captioner is not None or writes),
    )


def open_captioner(flags: argparse.Namespace, scenes: Config) -> tuple[Trained, PairDataset] | None:
    """The model of ``--captioner``, and the split as it takes it: of built-in scenes those of the evaluated model.

    Raises:
        ValueError: it cannot be read, never learned to write, or takes another kind of input.
    """
    if flags.captioner is None:
        return None
    loaded = opened("captioner", flags.captioner)
    if CAPTIONS in loaded.untrained:
        raise ConfigError(f"--captioner {flags.captioner}: {loaded.untrained[CAPTIONS]}.")
    return loaded, load_split(flags.data, loaded, flags.max_images, scenes)


def _captioner(loaded: Trained, dataset: PairDataset, flags: argparse.Namespace, device: torch.device) -> Captioner:
    precision = resolve_precision(flags.precision, device)
    runner = Runner(loaded.model.to(device), flags.batch_size, device, precision.autocast, flags.num_workers or 0)
    with naming_bad_records():
        return Captioner(runner, runner.encode(dataset))


def caption(loaded: Trained, dataset: PairDataset, device: torch.device, flags: argparse.Namespace) -> Captioned:
    """Captions of all images, and their scores."""
    precision, workers = how_to_run(loaded, dataset, device, flags)
    with naming_bad_records():
        return caption_dataset(
            loaded, dataset, device, precision, flags.num_beams, flags.max_new_tokens, flags.batch_size, workers
        )


def main(argv: list[str] | None = None) -> None:
    """Read the flags, evaluate, write the JSON, print the table."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_on_config_error():
        files = {"output": flags.output, "predictions": flags.predictions}
        of_parts = flags.data is not None and BABYLM not in flags.task and is_vlm(flags.checkpoint)
        if CAPTIONING in flags.task or (of_parts and flags.task_by_default):
            files["contact_sheet"] = flags.contact_sheet
        try:
            check_outputs(files, {"data": flags.data, "eval_dir": flags.eval_dir, "images": flags.images})
        except ValueError as error:
            raise ConfigError(str(error)) from error
        device = device_of(flags)
        if of_parts:
            main_of_parts(flags, device, files)
            return
        if {REASONING, GROUNDING} & set(flags.task):
            main_of_reasoning(flags, device, files, opened)
            return
        refuse_flags_of_parts(flags)
        results: dict[str, Any] = {}
        predictions: Any = {}
        try:
            if flags.data is not None and set(flags.task) - {BABYLM, GLUE}:
                loaded = opened("checkpoint", flags.checkpoint)
                warn_of_untrained(loaded, flags.task)
                dataset = load_split(flags.data, loaded, flags.max_images)
                check_asked(loaded, dataset, flags.task)
                other = open_captioner(flags, loaded.config)
                if CAPTIONING in flags.task:
                    check_references(dataset)
                    pictures = pictures_of_sheet(dataset, flags.images)
            if GLUE in flags.task:
                check_glue_files(flags)
            if BABYLM in flags.task:
                (results[BABYLM], predictions), kept = evaluate_language(flags, device)
            if GLUE in flags.task:
                results[GLUE], predictions[GLUE] = evaluate_glue_tasks(flags, device)
        except ValueError as error:  # what a person asked for cannot be
            raise ConfigError(str(error)) from error
        if {RETRIEVAL, MATCHING, MEMORY} & set(flags.task):
            results = evaluate(loaded, dataset, device, flags, other) | results
        writers = {
            "output": lambda path: write_results(results, path),
            "predictions": lambda path: write_results(predictions, path),
        }
        if CAPTIONING in flags.task:
            captioned = caption(loaded, dataset, device, flags)
            results[CAPTIONING] = captioned.metrics
            with naming_bad_records():
                said = coco_results(dataset, captioned.captions)
            # COCO's tools read a list; beside the decisions of BabyLM's sets it is one of several.
            predictions = predictions | {CAPTIONING: said} if predictions else said
            writers["contact_sheet"] = lambda path: draw_sheet(path, pictures, dataset, captioned)
        text = tables(results, flags.rerank_top_k or RERANK_TOP_K)
        if GLUE in results:
            text = "\n\n".join(part for part in (text, glue_table(results[GLUE])) if part)
        say_and_write(text, files, writers)
        if BABYLM in flags.task:
            kept.remove(results[BABYLM])
