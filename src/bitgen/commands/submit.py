"""Make a BabyLM submission of an export: evaluate it and its checkpoints, collate the predictions, and report."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Data workers are forked after the tokenizer was used; it would warn, and switch itself off, in each of them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from bitgen.config import ConfigError, exit_on_config_error
from bitgen.evaluation.babylm.acquisition.ages import age_of_acquisition, read_acquisition_data
from bitgen.evaluation.babylm.glue.data import glue_folder, read_glue_task, tasks_of
from bitgen.evaluation.babylm.glue.evaluation import evaluate_glue
from bitgen.evaluation.babylm.submission.curves import write_curves
from bitgen.evaluation.babylm.submission.data import SubmissionData, read_submission_data
from bitgen.evaluation.babylm.submission.layout import AOA, AOA_SCORE, GLUE, SURPRISAL, TRACKS, Track
from bitgen.evaluation.babylm.submission.model import SubmissionModel, read_submission_model
from bitgen.evaluation.babylm.submission.report import CURVE, Report
from bitgen.evaluation.babylm.submission.run import KEPT, Parts, evaluate_submission, write_official
from bitgen.evaluation.results import write_results
from bitgen.guards.arguments import Parser, add_device_flag
from bitgen.guards.failures import is_disk_full
from bitgen.guards.flags import boolean, check_ranges
from bitgen.guards.printable import printable
from bitgen.machine.devices import choose_device
from bitgen.machine.files import remove_leftovers, write_whole
from bitgen.machine.locks import exclusive
from bitgen.show.bars import bars_on_terminals_alone
from bitgen.trained import holds_model_or_data
from bitgen.training.budget import MILLION

logger = logging.getLogger("submit")

_HELP = """\
Make a BabyLM submission of an export, as `python src/export.py --words_seen_checkpoints True` writes it.

The final model is evaluated on every set in --eval_dir, each checkpoint chck_*M on the fast ones, as the official
pipeline of 2026 (strict) does it. --eval_dir is evaluation_data, or its full_eval or fast_eval alone.

--output then holds
  results/MODEL/            predictions in the official layout, and the collated JSON file that the leaderboard takes
  report.md, results.json   what is missing, what the track allows, the scores beside published models'
  learning_curve.png        scores against words seen
  kept/                     each result as it came: a second call goes on from there, and evaluates anew only what has
                            other weights, tokenizer or data. --output may be written by earlier calls alone.

Age of acquisition is evaluated where its data is found (aoa in full_eval) and there are checkpoints; (Super)GLUE with
--finetune True alone, for it takes hours on a CPU."""
_LOCK = "submission.lock"
_BATCHES = {"batch_size": (1, 65_536)}


def parse_flags(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, metavar="EXPORT", help="an exported model; its checkpoints are folders chck_*M in it"
    )
    parser.add_argument(
        "--eval_dir", required=True, metavar="DIR", help="evaluation_data, or its full_eval or fast_eval"
    )
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="empty, not there yet, or of an earlier call of this command"
    )
    parser.add_argument(
        "--track", choices=tuple(TRACKS), default="strict-small", help="10M or 100M words (default: strict-small)"
    )
    parser.add_argument(
        "--finetune",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="(Super)GLUE too, if --eval_dir has glue_filtered: hours on a CPU (default: False)",
    )
    parser.add_argument(
        "--glue_kept",
        metavar="DIR",
        help="where finished tasks of (Super)GLUE are kept, as results_glue of `evaluate.py --task glue`: those of "
        "seed 42 are then not fine-tuned again (default: in --output)",
    )
    add_device_flag(parser)
    parser.add_argument(
        "--batch_size", type=int, default=128, metavar="N", help="more are faster on a GPU, and take more memory (128)"
    )
    parser.add_argument(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="run Python code that a model of another library brings (default: False)",
    )
    flags = parser.parse_args(argv)
    check_ranges(parser, flags, _BATCHES)
    return flags


def main(argv: list[str] | None = None) -> None:
    """Read the flags, evaluate what is not kept yet, write everything, print what there is and what is missing."""
    flags = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bars_on_terminals_alone()
    folder = None
    with exit_on_config_error():
        try:
            folder = checked_output(flags.output, {"model": flags.model, "eval_dir": flags.eval_dir})
            device = choose_device(flags.device)
            model = read_submission_model(flags.model)
            data = read_submission_data(flags.eval_dir)
            if flags.finetune and data.glue is None:
                raise ValueError(f"--finetune True: {flags.eval_dir} holds no glue_filtered. Add it, or leave it out")
            _check_files(flags, model, data)
            _make(folder)
            with exclusive(folder / _LOCK, printable(folder), "Wait until it ends, or name another --output."):
                _submit(flags, folder, device, model, data)
        except ValueError as error:  # what a person can mend
            is_kept = folder is not None and (folder / KEPT).is_dir()
            kept = f" What is finished is kept in {folder}: call again to go on." if is_kept else ""
            full = " The disk is full: free space on it." if is_disk_full(error.__cause__ or error) else ""
            raise ConfigError(f"{str(error).rstrip('.')}.{full}{kept}") from error


def _check_files(flags: argparse.Namespace, model: SubmissionModel, data: SubmissionData) -> None:
    """Read what is evaluated last before anything is: hours lie between. Raises ValueError for a damaged file."""
    if data.aoa is not None and model.checkpoints:
        read_acquisition_data(data.aoa)
    if flags.finetune and data.glue is not None:
        tasks = glue_folder(data.glue)
        for task in tasks_of(tasks):
            read_glue_task(tasks, task)


def _submit(
    flags: argparse.Namespace, folder: Path, device: torch.device, model: SubmissionModel, data: SubmissionData
) -> None:
    remove_leftovers(folder)
    track = TRACKS[flags.track]
    logger.info("%s: the final model and %d checkpoints, %s", model.folder, len(model.checkpoints), device)
    tokens = 32 * flags.batch_size
    submission = evaluate_submission(model, data, folder, device, tokens, flags.trust_remote_code)
    parts = _other_parts(flags, folder, device, model, data, track, tokens)
    logger.info("%d results evaluated now, %d kept from earlier calls", submission.fresh, submission.reused)
    report = Report(model, data, submission, parts, track)
    print(report.terminal())
    collated = write_official(folder, model, data, submission, parts, track)
    write_results(report.as_json(), str(folder / "results.json"))
    curves = report.curves()
    if curves:
        write_curves(curves, f"{model.name}: BabyLM's fast sets", folder / CURVE)
    else:
        (folder / CURVE).unlink(missing_ok=True)
    write_whole(folder / "report.md", report.as_markdown().encode())
    logger.info("report in %s; for the leaderboard: %s", folder / "report.md", collated)


def _other_parts(
    flags: argparse.Namespace,
    folder: Path,
    device: torch.device,
    model: SubmissionModel,
    data: SubmissionData,
    track: Track,
    batch_tokens: int,
) -> Parts:
    """Ages of acquisition and GLUE, as far as they can be had and are asked for."""
    # The pipeline asks its own list of checkpoints; one more would be a point more on every curve.
    by_words = {
        millions * MILLION: revision.folder
        for revision in model.checkpoints
        if (millions := revision.millions or 0) in track.milestones
    }
    why: dict[str, str] = {}
    figures: dict[str, Mapping[str, Any]] = {AOA: {}, GLUE: {}}
    aoa_files: dict[str, Any] = {}
    glue_predictions: Mapping[str, Any] = {}
    if data.aoa is None:
        why[AOA] = "--eval_dir has no folder aoa (cdi_childes.json and cdi_human.csv)"
    elif not by_words:
        why[AOA] = f"it needs checkpoints chck_*M of {track.name}, and the export has none"
    else:
        ages = age_of_acquisition(
            by_words,
            data.aoa,
            device,
            trust_remote_code=flags.trust_remote_code,
            kept=folder / KEPT / AOA,
            model_name=model.name,
            batch_tokens=batch_tokens,
        )
        figures[AOA], aoa_files = ages.results, {SURPRISAL: ages.surprisal, AOA_SCORE: ages.score}
    if not flags.finetune:
        there = "found, and left out without --finetune True" if data.glue else "--eval_dir has no folder glue_filtered"
        why[GLUE] = there
    else:
        assert data.glue is not None
        glue = evaluate_glue(
            model.folder,
            data.glue,
            device,
            kept=flags.glue_kept or folder / KEPT / GLUE,
            trust_remote_code=flags.trust_remote_code,
        )
        figures[GLUE], glue_predictions = glue.results, glue.predictions
    return Parts(figures[GLUE], glue_predictions, figures[AOA], aoa_files, why)


def checked_output(output: str, inputs: Mapping[str, str]) -> Path:
    """The absolute path of ``--output``.

    Args:
        inputs: by flag, folders that are read.

    Raises:
        ValueError: it is a file, or holds what no call of this command wrote, or lies in what is read or in another
            model or dataset, or that in it.
    """
    shown, folder = printable(output), Path(os.path.realpath(output))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {shown} is a file: name a folder")
    for flag, path in inputs.items():
        read = Path(os.path.realpath(path))
        if read == folder or read in folder.parents or folder in read.parents:
            raise ValueError(
                f"--output {shown} and --{flag} {printable(path)} lie in one another: name a folder outside"
            )
    if inside := next((one for one in (folder, *folder.parents) if holds_model_or_data(one)), None):
        raise ValueError(f"--output {shown}: {inside} holds a model or a dataset. Name a folder outside")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _LOCK).is_file():
        raise ValueError(f"--output {shown} is not empty, and no earlier call wrote it: name another folder")
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output {folder}: cannot make it ({error.strerror or error}). Name another folder"
        ) from error
