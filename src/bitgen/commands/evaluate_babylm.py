"""`src/evaluate.py --task babylm`: the zero-shot sets of the BabyLM challenge."""

from __future__ import annotations

import argparse
import logging

import torch

from bitgen.config import ConfigError
from bitgen.evaluation.babylm.evaluation import Evaluation, KeptSets, evaluate_babylm, read_evaluation_data
from bitgen.evaluation.babylm.items import LATEST
from bitgen.evaluation.babylm.models import identity, open_language_model
from bitgen.evaluation.babylm.scoring import Scorer
from bitgen.evaluation.babylm.submission.layout import differences
from bitgen.evaluation.flags import BABYLM
from bitgen.evaluation.outputs import kept_beside
from bitgen.guards.printable import printable

logger = logging.getLogger("evaluate")


def evaluate_language(flags: argparse.Namespace, device: torch.device) -> tuple[Evaluation, KeptSets]:
    """The figures of the BabyLM sets, and the decisions behind them; and where each finished set is kept, beside
    ``--output``, so that the same call goes on where it was interrupted.

    Raises:
        ValueError: sets or model cannot be read, or do not go together.
    """
    data = read_evaluation_data(flags.eval_dir, flags.babylm_year)
    try:
        model, encoder = open_language_model(flags.checkpoint, device, flags.trust_remote_code)
    except ValueError as error:
        raise ConfigError(f"--checkpoint {error}") from error
    of_model = identity(model, encoder, flags.checkpoint)
    kept = KeptSets(kept_beside(flags.output, BABYLM), of_model, flags.eval_dir, flags.babylm_year)
    found = evaluate_babylm(data, encoder, Scorer(model, device, batch_tokens=32 * flags.batch_size), kept)
    if flags.babylm_year == LATEST:
        for difference in differences(found.predictions):
            logger.warning("%s: its figure is not of the official questions", printable(difference, 300))
    return found, kept
