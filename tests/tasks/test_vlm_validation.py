"""Validation of a model of parts: what TensorBoard shows of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from bitgen.config.vlm import stages_of
from bitgen.machine.devices import resolve_precision
from bitgen.machine.ranks import Processes
from bitgen.objectives.supervised import NextTokens
from bitgen.show.drawing import canvas, draw_tile, render
from bitgen.tasks.vlm_parts import build_parts
from bitgen.tasks.vlm_validation import HeldOutAnswers
from support.vlm import recipe


def test_answers_are_shown_below_their_pictures_in_their_own_colours(tmp_path: Path) -> None:
    stage = {"name": "align", "trains": "connector"}
    config = stages_of(recipe(tmp_path, [stage], val_data="scenes", val_generated=3, image_size=28))[0].config
    ranks = Processes(0, 1, torch.device("cpu"))
    parts = build_parts(config, ranks, fresh=True)
    held_out = HeldOutAnswers(config, parts, ranks, resolve_precision("fp32", ranks.device))
    result = held_out(NextTokens(parts.model))
    sheet = result.pictures["samples/answers"]
    assert sheet.dtype == torch.uint8 and sheet.shape[0] == 3 and "samples/answers" in result.texts
    # The first tile is the scene as it was drawn, not as it is normalised.
    reader = parts.val.conversations.reader  # type: ignore[union-attr]
    figure, axes = canvas(sheet.shape[2], sheet.shape[1])
    draw_tile(axes, 22, 44, 260, np.asarray(reader.picture(0, 28)), "")
    tile = (slice(None), slice(60, 290), slice(40, 260))
    assert (sheet[tile].int() - render(figure)[tile].int()).abs().float().mean() < 2.0
