"""The models of a submission: the final one, its ``chck_*M`` checkpoints, and what the export says of the training."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitgen.checkpoint.format import REVISION_PREFIX
from bitgen.evaluation.babylm.kept import fingerprint_of_files
from bitgen.evaluation.babylm.submission.layout import FINAL, revision_name
from bitgen.guards.json_files import BadJson, read_json
from bitgen.machine.files import file_hash
from bitgen.trained import is_model_folder
from bitgen.training.budget import MILLION

_EXPORT = "python src/export.py --checkpoint RUN --output EXPORT --words_seen_checkpoints True"
_REVISION = re.compile(rf"{REVISION_PREFIX}(\d{{1,6}})M")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
_WEIGHTS = (".safetensors", ".bin")
_WORDS_IN_CARD = re.compile(r"words seen, all epochs counted\s*\|\s*([\d,]+)")
# What cards of exports say whose settings do not.
_IN_CARD_OF_SECOND_RUN = "words seen since it started from another run"


class Revision(NamedTuple):
    """One model of the submission: ``name`` as the pipeline calls it, ``millions`` of words seen (None: the final one,
    whose number the export may not say), its folder, and what its files are by content."""

    name: str
    millions: int | None
    folder: Path
    fingerprint: str


class SubmissionModel(NamedTuple):
    """An export.

    ``revisions``: the final model, then the checkpoints, fewest words first.
    ``words_seen``, ``passes``, ``corpus_words``: of the final model: all passes counted, how many they were, and each
    word counted once; None where the export does not say.
    ``left_out``: of folders that are called as checkpoints and count as none, why, a sentence each.
    ``images``: whether it was trained with images, as far as the export says.
    """

    folder: Path
    revisions: list[Revision]
    words_seen: int | None
    passes: int | None
    left_out: tuple[str, ...] = ()
    images: bool = False
    corpus_words: int | None = None

    @property
    def name(self) -> str:
        """The name of its folder of results, as the pipeline makes it."""
        return self.folder.stem

    @property
    def checkpoints(self) -> list[Revision]:
        """All but the final model."""
        return self.revisions[1:]


def read_submission_model(path: str | Path) -> SubmissionModel:
    """Looks through an export and its checkpoints, and loads none.

    Raises:
        ValueError: it is no folder of a model, or a checkpoint in it has no model, another tokenizer or vocabulary.
    """
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise ValueError(f"{path}: {'this is a file' if folder.exists() else 'there is no such folder'}. {_EXPORT}")
    _check_model(folder)
    checkpoints, left_out = _checkpoints(folder)
    for _, child in checkpoints:
        _check_same_tokenizer(folder, child)
    revisions = [Revision(FINAL, None, folder, fingerprint_of_files(folder))]
    revisions += [Revision(child.name, millions, child, fingerprint_of_files(child)) for millions, child in checkpoints]
    words, passes, corpus = training_said(folder)
    images = _trained_with(folder).get("images") is True
    return SubmissionModel(folder, revisions, words, passes, left_out, images, corpus)


def _checkpoints(folder: Path) -> tuple[list[tuple[int, Path]], tuple[str, ...]]:
    """``(millions of words, folder)`` of each checkpoint, and why others are none.

    Raises:
        ValueError: one has no model.
    """
    found: list[tuple[int, Path]] = []
    anew: list[tuple[int, Path]] = []
    left_out = []
    for child in folder.iterdir():
        match = _REVISION.fullmatch(child.name)
        if match is None or not child.is_dir():
            continue
        millions = int(match[1])
        if not millions:
            left_out.append(f"{child.name} was left out: no track asks for a model that has seen nothing")
        elif child.name != revision_name(millions):
            left_out.append(f"{child.name} was left out: its name would be {revision_name(millions)}. Rename it")
        else:
            _check_model(child)
            (anew if _counts_anew(child) else found).append((millions, child))
    if anew:
        left_out.append(
            f"{shortened([child.name for _, child in sorted(anew)])}: left out. Their run started from another one "
            "(init_from), and these names count the words of this run alone. Train without init_from for checkpoints "
            "that count all words"
        )
    return sorted(found), tuple(sorted(left_out))


def _counts_anew(folder: Path) -> bool:
    """Whether a model's run began with the weights of another one."""
    if "words_since_another_run" in _trained_with(folder):
        return True
    return _IN_CARD_OF_SECOND_RUN in _card(folder)


def _check_model(folder: Path) -> None:
    if not is_model_folder(folder):
        raise ValueError(f"{folder} holds no exported model (config.json, weights and tokenizer). Make one: {_EXPORT}")
    if not any(path.suffix in _WEIGHTS for path in folder.iterdir()):
        raise ValueError(f"{folder} holds no weights (model.safetensors). Export the model again: {_EXPORT}")


def _check_same_tokenizer(final: Path, checkpoint: Path) -> None:
    """Scores of models with different tokens make no learning curve, and one of the two was put there by mistake."""
    sizes = [_config(folder).get("vocab_size") for folder in (final, checkpoint)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{final} and {checkpoint} have vocabularies of {sizes[0]} and {sizes[1]} tokens: they are not of one run. "
            f"Export the run again into a new folder: {_EXPORT}"
        )
    for name in _TOKENIZER_FILES:
        files = [folder / name for folder in (final, checkpoint)]
        there = [file.is_file() for file in files]
        if there[0] != there[1] or (all(there) and file_hash(files[0]) != file_hash(files[1])):
            raise ValueError(
                f"the tokenizers of {final} and {checkpoint} differ ({name}): they are not of one run. Export the run "
                f"again into a new folder: {_EXPORT}"
            )


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "config.json", dict)
    except (OSError, BadJson) as error:
        raise ValueError(
            f"{folder / 'config.json'} cannot be read ({error}). Export the model again: {_EXPORT}"
        ) from error


def training_said(folder: Path) -> tuple[int | None, int | None, int | None]:
    """Words seen and passes begun, all counted, and words of the corpus, as ``config.json`` says them; the words seen
    else by the model card."""
    kept = _trained_with(folder)
    words, passes, corpus = (_whole(kept.get(name)) for name in ("words_seen", "passes", "corpus_words"))
    if words is None:
        match = _WORDS_IN_CARD.search(_card(folder))
        words = int(match[1].replace(",", "")) if match and len(match[1]) < 20 else None
    return words or None, passes or None, corpus or None


def _trained_with(folder: Path) -> dict[str, Any]:
    kept = _config(folder).get("trained_with")
    return kept if isinstance(kept, dict) else {}


def _card(folder: Path) -> str:
    card = folder / "README.md"
    readable = card.is_file() and card.stat().st_size < MILLION
    return card.read_text(encoding="utf-8", errors="replace") if readable else ""


def shortened(names: Sequence[str]) -> str:
    """Names of many folders in a line."""
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])} ... {names[-1]} ({len(names)})"


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
