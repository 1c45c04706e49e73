"""From an export to a BabyLM submission: every set over the final model, the fast ones over each checkpoint, kept as
they come, and collated in the layout of the official pipeline."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bitgen.evaluation.babylm.encoding import ProcessorEncoder
from bitgen.evaluation.babylm.evaluation import evaluate_babylm
from bitgen.evaluation.babylm.kept import EDITION, KeptResults, fingerprint
from bitgen.evaluation.babylm.models import open_language_model
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.evaluation.babylm.submission.data import SetData, SubmissionData
from bitgen.evaluation.babylm.submission.layout import (
    AOA,
    AOA_FOLDER,
    AOA_SCORE,
    BACKEND,
    COLLATED,
    FAST,
    FINAL,
    FULL,
    GLUE_TASKS,
    OFFICIAL,
    PREDICTIONS,
    SURPRISAL,
    Track,
    aoa_problems,
    collated,
    fast_scores,
    glue_problems,
    size_problems,
)
from bitgen.evaluation.babylm.submission.model import Revision, SubmissionModel
from bitgen.guards.printable import printable
from bitgen.machine.files import remove_leftovers, replacing_folder

logger = logging.getLogger(__name__)

KEPT, RESULTS = "kept", "results"
_TOKENIZER = "tokenizer"
# What is written below results/MODEL/REVISION.
_WRITTEN = {
    *(f"zero_shot/{BACKEND}/{one.folder}/{PREDICTIONS}" for part in OFFICIAL.values() for one in part.values()),
    *(f"zero_shot/{BACKEND}/{AOA_FOLDER}/{name}.json" for name in (SURPRISAL, AOA_SCORE)),
    *(f"finetune/{task}/{PREDICTIONS}" for task in GLUE_TASKS),
}


class Done(NamedTuple):
    """A result that is kept: its ``figures``, how many ``seconds`` it took, and a way to its predictions."""

    figures: dict[str, Any]
    seconds: float
    predictions: Callable[[], dict[str, Any]]


class Parts(NamedTuple):
    """What others evaluate: GLUE of the final model, and ages of acquisition of all checkpoints together.

    ``glue``, ``glue_predictions``: figures and predictions by task. ``aoa``: figures; ``aoa_files``: the contents of
    the official files ``surprisal`` and ``aoa_score``. Empty where it was not done; ``why`` says why, by ``glue`` and
    ``aoa``.
    """

    glue: Mapping[str, Any]
    glue_predictions: Mapping[str, Any]
    aoa: Mapping[str, Any]
    aoa_files: Mapping[str, Any]
    why: Mapping[str, str]

    def problems(self, track: Track) -> dict[str, list[str]]:
        """As those of :class:`Submission`, by task of GLUE and ``aoa``."""
        found = glue_problems(self.glue_predictions)
        if SURPRISAL in self.aoa_files and (of_aoa := aoa_problems(self.aoa_files[SURPRISAL], track)):
            found[AOA] = of_aoa
        return found


class Submission(NamedTuple):
    """All results by revision and ``PART/SET``: ``fresh`` of them are of this call, ``reused`` of earlier ones.
    ``problems``: by ``PART/SET``, how a set differs in size from the official one; the collated file leaves it out.
    ``begins_with_special``: whether the tokenizer puts a BOS, or the like, before a text."""

    done: dict[str, dict[str, Done]]
    fresh: int
    reused: int
    problems: dict[str, list[str]]
    begins_with_special: bool = True


def sets_of(revision: Revision, data: SubmissionData) -> list[SetData]:
    """What a revision is asked: the final model everything, a checkpoint the fast sets."""
    return data.sets if revision.name == FINAL else data.of(FAST)


def evaluate_submission(
    model: SubmissionModel,
    data: SubmissionData,
    folder: Path,
    device: torch.device,
    batch_tokens: int,
    trust_remote_code: bool = False,
) -> Submission:
    """Evaluate what ``folder`` does not hold yet. Each result is kept, whole, when it is there; whatever ends the
    call, the next one goes on from there.

    Raises:
        ValueError: a model cannot be loaded or read a set, or a result cannot be written; the message names it.
    """
    done: dict[str, dict[str, Done]] = {}
    known: dict[str, Done] = {}  # of the same model and data, whatever they are called
    fresh, earlier, problems, begins = 0, 0, {}, True
    for revision in model.revisions:
        own = folder / KEPT / revision.name
        if own.is_dir():
            remove_leftovers(own)
        opened = _Opened(revision, device, batch_tokens, trust_remote_code)
        done[revision.name], reused = {}, 0
        if revision.name == FINAL:
            of_tokenizer = KeptResults(own, fingerprint(f"{EDITION} tokenizer", revision.fingerprint))
            known_of_it = of_tokenizer.get(_TOKENIZER)
            if known_of_it is None:
                known_of_it = opened.parts()[1].begins_with_special()
                of_tokenizer.put(_TOKENIZER, known_of_it)
            begins = known_of_it
        for one in sets_of(revision, data):
            mark = fingerprint(f"{EDITION} {one.data.year} {one.name}", revision.fingerprint, one.fingerprint)
            kept = KeptResults(own, mark)
            found = _kept(kept, one)
            if found is not None:
                reused += 1
            elif mark in known:  # an equal set of the other part, or a checkpoint with equal weights
                twin = known[mark]
                kept.put(_file(one), [twin.figures, twin.predictions(), twin.seconds])
                found = _kept(kept, one)
            if found is None:
                scorer, encoder = opened.parts()
                began = time.monotonic()
                try:
                    evaluation = evaluate_babylm(one.data, encoder, scorer)
                except ValueError as error:
                    raise ValueError(f"{revision.folder}, {one.label}: {error}") from error
                seconds = time.monotonic() - began
                content = [evaluation.results[one.name], evaluation.predictions[one.name], seconds]
                kept.put(_file(one), content)
                logger.info("%s: %s in %.0f s", revision.name, printable(one.label), seconds)
                found, fresh = _kept(kept, one), fresh + 1
                assert found is not None, one.label
            known[mark] = done[revision.name][one.label] = found
            if revision.name == FINAL:
                problems[one.label] = size_problems(one.part, one.name, found.predictions())
        earlier += reused
        if reused:
            logger.info("%s: %d of %d results were there already", revision.name, reused, len(done[revision.name]))
    return Submission(done, fresh, earlier, {label: found for label, found in problems.items() if found}, begins)


class _Opened:
    """A revision's model, which is loaded when something is first asked of it."""

    def __init__(self, revision: Revision, device: torch.device, batch_tokens: int, trust_remote_code: bool) -> None:
        self.revision, self.device = revision, device
        self.batch_tokens, self.trust_remote_code = batch_tokens, trust_remote_code
        self._parts: tuple[Scorer, ProcessorEncoder] | None = None

    def parts(self) -> tuple[Scorer, ProcessorEncoder]:
        """Raises ValueError: it cannot be loaded."""
        if self._parts is None:
            logger.info("loading %s (%s)", self.revision.name, self.revision.folder)
            model, encoder = open_language_model(self.revision.folder, self.device, self.trust_remote_code)
            self._parts = Scorer(model, self.device, self.batch_tokens), encoder
        return self._parts


def _file(one: SetData) -> str:
    return f"{one.part}-{one.name}"


def _kept(kept: KeptResults, one: SetData) -> Done | None:
    content = kept.get(_file(one))
    if content is None:
        return None
    figures, _, seconds = content

    def predictions() -> dict[str, Any]:
        again = kept.get(_file(one))
        if again is None:
            raise ValueError(f"{kept.folder / _file(one)}.json was changed meanwhile. Start again")
        return again[1]

    return Done(figures, seconds, predictions)


# ---- the official layout ----


def write_official(
    folder: Path, model: SubmissionModel, data: SubmissionData, submission: Submission, parts: Parts, track: Track
) -> Path:
    """Write the predictions as the official pipeline lays them out below ``folder/results``, in the place of what an
    earlier call wrote there, and the collated file among them, whose path is returned. What others put there stays, as
    the predictions of the pipeline's multimodal evaluation, which take hours.

    Raises:
        ValueError: the disk says no; what was there stays.
    """
    target, bad = folder / RESULTS, parts.problems(track)
    full: dict[str, Any] = {}
    fast: dict[str, dict[str, Any]] = {}
    try:
        with replacing_folder(target) as new:
            root = new / model.name
            for revision in model.revisions:
                zero_shot = root / revision.name / "zero_shot" / BACKEND
                for one in sets_of(revision, data):
                    official = OFFICIAL[one.part].get(one.name)
                    if official is None:
                        continue
                    found = submission.done[revision.name][one.label]
                    predictions = found.predictions()
                    path = zero_shot / official.folder / PREDICTIONS
                    # Where both parts have a set of this name, the final model's predictions are those of the full one,
                    # which comes first.
                    is_first = not path.exists()
                    if is_first:
                        _write_json(path, predictions)
                    if one.label in submission.problems:
                        continue
                    if revision.name != FINAL:
                        scores = fast_scores(official.key, found.figures, predictions, one.answers)
                        fast.setdefault(revision.name, {})[official.key] = scores
                    elif is_first and one.name in OFFICIAL[FULL]:
                        full[official.key] = predictions
            for task, found in parts.glue_predictions.items():
                _write_json(root / FINAL / "finetune" / task / PREDICTIONS, {task: found})
            for name, found in parts.aoa_files.items():
                _write_json(root / FINAL / "zero_shot" / BACKEND / AOA_FOLDER / f"{name}.json", found)
            glue = {task: found for task, found in parts.glue_predictions.items() if task not in bad}
            aoa = {name: found for name, found in parts.aoa_files.items() if name != SURPRISAL or AOA not in bad}
            content = collated(full, glue, aoa, fast if data.of(FAST) else None, track)
            _write_json(root / COLLATED, content)
            _keep_what_others_wrote(target, new)
    except OSError as error:
        raise ValueError(f"{target}: cannot write it ({error.strerror or error})") from error
    return target / model.name / COLLATED


def _keep_what_others_wrote(folder: Path, new: Path) -> None:
    """Copy the files of ``folder`` that no call of ours writes into ``new``."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        there = path.relative_to(folder)
        _, *below = there.parts
        ours = below == [COLLATED] or "/".join(below[1:]) in _WRITTEN
        if path.is_file() and not path.is_symlink() and not ours and not (new / there).exists():
            (new / there).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, new / there)


def _write_json(path: Path, content: Any) -> None:
    """NaN stays NaN, as in the pipeline's own files: the word before the first has no surprisal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
