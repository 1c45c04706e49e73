"""Exporting a run: its model, and the models that it was after given numbers of words."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from bitgen.checkpoint.format import MANIFEST_FILE, REVISION_PREFIX, read_state, revision_folders
from bitgen.checkpoint.manifest import CheckpointFiles
from bitgen.config import ConfigError
from bitgen.export.card import model_card
from bitgen.export.folder import write_folder
from bitgen.export.target import checked_target
from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable
from bitgen.machine.files import replacing_folder
from bitgen.trained import Trained, is_export, open_model
from bitgen.training.origin import words_before

logger = logging.getLogger(__name__)


def read_results(path: str | None) -> dict[str, Any]:
    """The metrics that ``src/evaluate.py`` wrote, for the card.

    Raises:
        ConfigError: the file cannot be read or holds something else.
    """
    if path is None:
        return {}
    try:
        results = read_json(path, dict)
        if not results or not all(isinstance(part, (dict, list)) for part in results.values()):
            raise BadJson("it holds no results")
        return results
    except (OSError, BadJson) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--results {printable(path)} cannot be read ({reason}): name a file that src/evaluate.py wrote"
        ) from error


def export_run(
    checkpoint: str, output: str, merge_lora: bool, words_seen_checkpoints: bool, metrics: dict[str, Any]
) -> Path:
    """Write the model of ``checkpoint`` into ``output``, and with ``words_seen_checkpoints`` one folder
    ``output/chck_*`` for each such checkpoint of its run. ``output`` appears whole or not at all.

    Raises:
        ConfigError: ``output`` is not empty or cannot be written, or a checkpoint is missing, damaged or unfit.
    """
    target = checked_target(output)
    if is_export(checkpoint):
        raise ConfigError(
            f"--checkpoint {checkpoint} is an export already. Give the --output_dir of the run that it was made of."
        )
    main = _opened(checkpoint)
    run = main.folder.parent
    revisions: list[Path] = []
    if words_seen_checkpoints:
        revisions = [path for path in revision_folders(run) if (path / MANIFEST_FILE).is_file()]
        if not revisions:
            raise ConfigError(
                f"--words_seen_checkpoints True: {run} holds no {REVISION_PREFIX}*M checkpoints (chck_1M: "
                "after a million words). Leave the flag out, or name a run that saved them."
            )
        if _before(main, read_state(CheckpointFiles(main.folder)).state) != 0:
            logger.warning(
                "%s: its run started from another one (init_from), and %s*M count the words of this run alone. "
                "Checkpoints for BabyLM count all words: train without init_from for those.",
                printable(run),
                REVISION_PREFIX,
            )
    try:
        with replacing_folder(target, replace=False) as folder:
            _export_one(main, folder, merge_lora, metrics)
            for path in revisions:
                (folder / path.name).mkdir()
                _export_one(_opened(path), folder / path.name, merge_lora, {})
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot write there ({error.strerror or error}).") from error
    return target


def _opened(checkpoint: str | Path) -> Trained:
    try:
        return open_model(checkpoint)
    except ValueError as error:
        raise ConfigError(f"--checkpoint {error}") from error


def _export_one(trained: Trained, folder: Path, merge_lora: bool, metrics: dict[str, Any]) -> None:
    state = read_state(CheckpointFiles(trained.folder)).state
    before = _before(trained, state)
    card = model_card(trained, state, metrics, merge_lora, before)
    write_folder(trained, folder, card, merge_lora, seen_in_training(state, before))


def _before(trained: Trained, state: dict[str, Any]) -> int | None:
    return words_before(state, trained.config.training.init_from)


def seen_in_training(state: dict[str, Any], before: int | None = 0) -> dict[str, int]:
    """What challenges limit, as a checkpoint's training state knows it: ``words_seen``, all passes counted,
    ``passes`` that were begun through that part of the data (text, captions, a source of a mixture) seen most often,
    and ``corpus_words``, each word of text and captions counted once.

    Args:
        before: words that its weights had seen before its run; None: nobody knows. Where there were some, passes and
            corpus are not known, and ``words_since_another_run`` are those of its own run.
    """
    progress, source = state.get("progress", {}), state.get("source", {})
    own = int(progress.get("words_seen") or 0)
    if before != 0:
        return {"words_since_another_run": own} | ({} if before is None else {"words_seen": before + own})
    seen = {"words_seen": own} if own else {}
    if isinstance(source.get("corpus_words"), int):
        seen["corpus_words"] = source["corpus_words"]
    if isinstance(source.get("epoch"), int):
        # Checkpoints from before passes were counted know epochs alone: passes through the text.
        passes = source.get("passes", source["epoch"] + bool(source.get("batch")))
        seen["passes"] = math.ceil(passes - 1e-9)  # a quotient of steps may miss a whole number by rounding
    return seen
