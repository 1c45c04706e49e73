"""`src/evaluate.py` for a vision-language model of parts: answers, VQA accuracy, retrieval by likelihood."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from bitgen.config import ConfigError
from bitgen.config.schema import CONFIG_FILE
from bitgen.config.vlm import VlmConfig
from bitgen.data.conversations.dataset import ConversationDataset
from bitgen.data.conversations.opening import one_an_image, open_conversations
from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import Conversations
from bitgen.evaluation.answers import Decoding, askable
from bitgen.evaluation.flags import CAPTIONING, RETRIEVAL, VQA
from bitgen.evaluation.other_pictures import OtherPictures, partners
from bitgen.evaluation.tables import captions_that_are_right, likelihood_table
from bitgen.evaluation.talking import unread
from bitgen.evaluation.vlm import VlmEvaluation
from bitgen.guards.printable import printable
from bitgen.machine.devices import resolve_precision
from bitgen.show.tables import format_table
from bitgen.tasks.vlm_data import dataset_of
from bitgen.trained_vlm import TrainedVlm, open_vlm

if TYPE_CHECKING:
    from bitgen.evaluation.contact_sheet import SheetPicture

logger = logging.getLogger("evaluate")

TASKS = (CAPTIONING, VQA, RETRIEVAL)
# Retrieval runs the language model once for every pair: 10,000 times for so many candidates.
CANDIDATES = 100


def evaluate_vlm(flags: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], list[Any], str, Callable]:
    """All that the flags ask of a model.

    Returns:
        The figures by task, the answers for ``--predictions``, the tables to print, and what draws the contact sheet
        into a file.

    Raises:
        ConfigError: what was asked for cannot be; the message says what to write instead.
    """
    tasks = [CAPTIONING] if flags.task_by_default else flags.task
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ConfigError(f"--task {unknown[0]}: this model has {', '.join(TASKS)}. Name any of them.")
    if flags.images is not None:
        raise ConfigError(
            "--images is for models of stage 1: a contact sheet of this model shows the pictures of --data as the "
            "model sees them. Leave it out."
        )
    trained = open_vlm(flags.checkpoint, device)
    logger.info("checkpoint %s", trained.folder)
    if trained.model.connector is None:
        raise ConfigError(f"--checkpoint {flags.checkpoint} is a language model without pictures: take a later stage.")
    work = _opened(flags, trained, tasks, device)
    results: dict[str, Any] = {}
    tables, answers = [], []
    decoding = Decoding(flags.num_beams, flags.max_new_tokens)
    if flags.length_penalty is not None:
        decoding = replace(decoding, length_penalty=flags.length_penalty)
    if CAPTIONING in tasks or VQA in tasks:
        logger.info("writing %d answers on %s", len(work.rows), device)
        answers = work.answers(decoding)
    if CAPTIONING in tasks:
        results[CAPTIONING], scores = work.captioning(answers, decoding)
        tables.append(format_table(["answers", ""], scores.to_rows()))
        tables += captions_that_are_right(results[CAPTIONING])
    if VQA in tasks:
        found = results[VQA] = work.vqa(answers)
        rows = [["VQA accuracy, %", f"{found['vqa_accuracy']:.1f}"], ["exact match, %", f"{found['exact_match']:.1f}"]]
        rows += [["questions", f"{found['questions']:,}"], ["without an answer", f"{found['no_answer']:,}"]]
        tables.append(format_table(["questions", ""], rows))
    if RETRIEVAL in tasks:
        logger.info("%d x %d likelihoods on %s", len(work.rows), len(work.rows), device)
        results[RETRIEVAL] = work.retrieval(flags.bootstrap)
        tables.append(likelihood_table(results[RETRIEVAL]))
    if flags.shuffle_images:
        for figures in results.values():
            figures["shuffle_images"] = True
        tables.append("Control: every question was shown another image. What is left is known without seeing.")
    return results, work.predictions(answers) if answers else [], "\n\n".join(tables), _sheet(work, answers, flags)


def _opened(flags: argparse.Namespace, trained: TrainedVlm, tasks: list[str], device: torch.device) -> VlmEvaluation:
    """The data as this model takes it, and the rows that are asked about."""
    config = _config(trained)
    tower = trained.model.tower
    assert tower is not None and trained.model.connector is not None
    try:
        source = open_conversations(
            flags.data,
            prompts=[trained.description.speech.prompt],
            seed=config.training.seed,
            picture_size=tower.spec.image_size or 224,
            split="val",
            scenes=config.data.scenes_val,
        )
        _check_kind(source, trained, flags.data, tasks)
        rows = one_an_image(source)[: flags.max_images]
        if RETRIEVAL in tasks and flags.max_images is None and len(rows) > CANDIDATES:
            if tasks != [RETRIEVAL]:
                raise ConfigError(
                    f"--task {RETRIEVAL} ranks {len(rows):,} x {len(rows):,} pairs, one forward pass each. Write "
                    f"--max_images {CANDIDATES}, or the task alone, which then takes so many."
                )
            logger.warning(
                "the first %d of %d images are the candidates; --max_images takes more", CANDIDATES, len(rows)
            )
            rows = rows[:CANDIDATES]
        shown: Conversations = source
        if flags.shuffle_images:
            others = partners(source, rows)
            if len(others) < len(rows):
                logger.warning("%d of %d have no other image to be shown: left out", len(rows) - len(others), len(rows))
            if not others:
                raise ConfigError(f"--shuffle_images: {flags.data} has no second image of the same layout.")
            rows, shown = list(others), OtherPictures(source, others)
        dataset = dataset_of(config, trained.tokenizer, trained.model, shown, is_training=False)
        if tasks != [RETRIEVAL]:
            rows = _asked(dataset, rows, flags, trained)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"--data {error}") from error
    precision = resolve_precision(flags.precision, device)
    return VlmEvaluation(trained, dataset, source, rows, flags.batch_size, precision.autocast)


def _asked(dataset: ConversationDataset, rows: list[int], flags: argparse.Namespace, trained: TrainedVlm) -> list[int]:
    """The rows that can be asked; the others are counted, and the first of them is named."""
    positions = trained.model.language.config.max_position_embeddings
    found, left_out = askable(dataset, rows, flags.max_new_tokens, positions)
    if not found:
        raise ConfigError(f"--data {flags.data}: nothing in it can be asked, the first: {left_out[0]}")
    if left_out:
        logger.warning("%d of %d are left out, the first: %s", len(left_out), len(rows), left_out[0])
    return found


def _config(trained: TrainedVlm) -> VlmConfig:
    """A run's settings; of an export what its description says, and defaults."""
    if (trained.folder / CONFIG_FILE).is_file():
        return VlmConfig.load(trained.folder / CONFIG_FILE)
    said = trained.description.speech
    return VlmConfig().replace(template=said.template, system_prompt=said.system_prompt, max_length=said.max_length)


def _check_kind(source: Conversations, trained: TrainedVlm, data: str, tasks: list[str]) -> None:
    assert trained.model.tower is not None
    spec = trained.model.tower.spec
    takes = None if spec.image_size is not None else (spec.tokens, spec.width)
    if source.feature_shape != takes:
        names = [
            "pictures" if shape is None else "features of {} x {}".format(*shape)
            for shape in (source.feature_shape, takes)
        ]
        raise ConfigError(f"--data {data} holds {names[0]}, and this model takes {names[1]}: name such a folder.")
    if VQA in tasks and isinstance(source, PairConversations):
        raise ConfigError(f"--task {VQA} needs questions: {data} holds captions. Name a folder of conversations.")
    if VQA in tasks and (says := unread(trained)) is not None:
        raise ConfigError(f"--task {VQA}: {printable(says, 1000)}. Take {CAPTIONING}, or train with another template.")
    if RETRIEVAL in tasks and not isinstance(source, PairConversations):
        raise ConfigError(f"--task {RETRIEVAL} needs captions: {data} holds conversations. Name a folder of captions.")


# ---- the contact sheet ----


def _sheet(work: VlmEvaluation, answers: list[str], flags: argparse.Namespace) -> Callable[[str], None]:
    def draw(path: str) -> None:
        from bitgen.evaluation.contact_sheet import write_contact_sheet

        pictures = _pictures(work)
        chosen = [work.rows.index(picture.row) for picture in pictures]
        title = (
            f"{len(chosen)} of {len(answers):,} questions, spread evenly; below each the answer, in grey a person's."
        )
        references = work.references()
        first = [references[place][0] for place in chosen]
        write_contact_sheet(path, pictures, [answers[place] for place in chosen], first, title)

    return draw


def _pictures(work: VlmEvaluation) -> list[SheetPicture]:
    """Some of the rows, spread evenly, each with its first picture as the model sees it."""
    from bitgen.evaluation.contact_sheet import PICTURES, SheetPicture
    from bitgen.model.processing_bitgen import as_picture
    from bitgen.show.drawing import spread, to_picture

    assert work.trained.model.tower is not None
    spec, found = work.trained.model.tower.spec, []
    for place in spread(len(work.rows), PICTURES):
        row = work.rows[place]
        seen = work.dataset[row].get("pixel_values")
        pixels = None
        if seen is not None:
            pixels = to_picture(as_picture(seen[0], spec.mean, spec.std))
        found.append(SheetPicture(row, work.dataset.conversations[row].id, pixels))
    return found
