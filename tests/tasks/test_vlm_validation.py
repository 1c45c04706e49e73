"""Validation of a model of parts: what TensorBoard shows of it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig, stages_of
from bitgen.data.bad_records import BadRecord
from bitgen.data.conversations.dataset import ConversationDataset
from bitgen.data.conversations.records import IMAGE_MARKER, Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.machine.devices import resolve_precision
from bitgen.machine.ranks import Processes
from bitgen.objectives.supervised import NextTokens
from bitgen.show.drawing import canvas, draw_tile, render
from bitgen.tasks.vlm_parts import build_parts
from bitgen.tasks.vlm_validation import HeldOutAnswers
from support.runs import REPOSITORY
from support.vlm import recipe
from support.vlm_runs import encoded


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


def held_out_of(tmp_path: Path, answers: list[str], **changes: object) -> HeldOutAnswers:
    """Validates on one question for each answer, of pictures of one colour."""
    with writing_conversations(tmp_path / "val", "a test") as writer:
        row = writer.picture("a.png", encoded("red"))
        for number, answer in enumerate(answers):
            turns = [Turn("user", f"{IMAGE_MARKER}\nit?"), Turn("assistant", answer)]
            writer.add(f"q{number}", [[row]], turns, [])
    stage = {"name": "align", "trains": "connector"}
    settings = {"val_data": str(tmp_path / "val"), "val_generated": 9, "image_size": 28, "template": "libra_v1"}
    settings |= {"max_length": 200, "language_positions": 400}
    config = stages_of(recipe(tmp_path, [stage], **{**settings, **changes}))[0].config
    ranks = Processes(0, 1, torch.device("cpu"))
    parts = build_parts(config, ranks, fresh=True)
    held_out = HeldOutAnswers(config, parts, ranks, resolve_precision("fp32", ranks.device))
    held_out.model = parts.model  # type: ignore[attr-defined]
    return held_out


def test_what_cannot_be_asked_is_left_out_and_said(tmp_path: Path, caplog) -> None:
    held_out = held_out_of(tmp_path, ["red", "?!", "red"])
    assert held_out.rows == [0, 2]
    assert "1 of the 3 held-out conversations that val_generated asks are left out" in caplog.text
    assert "record 1 (q1): what is to be said has no word" in caplog.text


@pytest.mark.parametrize(("best", "answers"), [("cider", ["red"]), ("right", ["?!"])])
def test_a_measure_that_will_never_be_there_is_refused_before_the_run(tmp_path: Path, best, answers) -> None:
    with pytest.raises(ConfigError, match=f"best_metric {best} needs . held-out .* Write best_metric loss"):
        held_out_of(tmp_path, answers, best_metric=best)


def test_a_picture_that_cannot_be_read_ends_no_validation(tmp_path: Path, monkeypatch, caplog) -> None:
    held_out = held_out_of(tmp_path, ["red", "green", "blue"])
    objective = NextTokens(held_out.model)  # type: ignore[attr-defined]
    whole = held_out(objective).scalars
    sample = ConversationDataset._sample

    def broken(self, index: int, epoch: int) -> dict:
        if index == 1:
            raise BadRecord("record 1 cannot be read")
        return sample(self, index, epoch)

    monkeypatch.setattr(ConversationDataset, "_sample", broken)
    scalars = held_out(objective).scalars
    assert scalars.keys() == whole.keys() and scalars["val/loss"] != whole["val/loss"]
    held_out(objective)
    assert caplog.text.count("validation leaves out record 1 cannot be read") == 1


def test_an_answer_is_right_whatever_spaces_its_reference_has(tmp_path: Path) -> None:
    held_out = held_out_of(tmp_path, ["red"])
    references = [["no", "Yes.\nThere is  a dog."], ["a b"]]
    assert held_out._right([0, 0], ["Yes. There is a dog.", "a c"], references) == 50.0


def test_where_nothing_could_be_read_there_is_no_loss(tmp_path: Path, monkeypatch, caplog) -> None:
    """0 would be the best that any checkpoint can have."""
    held_out = held_out_of(tmp_path, ["red", "blue"])

    def unreadable(self: ConversationDataset, row: int) -> None:
        raise BadRecord(f"record {row} is damaged", "damaged")

    monkeypatch.setattr(ConversationDataset, "__getitem__", unreadable)
    assert math.isnan(held_out._loss(held_out.model))  # type: ignore[attr-defined]
    assert "no held-out conversation could be read" in caplog.text


def test_validation_has_batches_of_its_own_size(tmp_path: Path) -> None:
    """Its rows are padded, and those of training may be packed."""
    held_out = held_out_of(tmp_path, ["red", "blue", "green"], val_batch_size=2)
    sizes, collate = [], held_out.collate
    held_out.collate = lambda samples: sizes.append(len(samples)) or collate(samples)  # type: ignore[assignment]
    held_out(NextTokens(held_out.model))  # type: ignore[attr-defined]
    assert sizes == [2, 1, 2, 1]  # of the loss, and of the answers


def test_libras_reports_fit_behind_picture_and_question() -> None:
    config = stages_of(VlmConfig.parse(["--config", str(REPOSITORY / "configs" / "vlm_libra.yaml")]))[-1].config
    picture = (518 // 14) ** 2  # patches of RAD-DINO, which tac keeps
    assert 512 <= config.validation.val_max_new_tokens <= config.language.max_length - picture - 128


def test_the_guides_experiments_are_flags_of_its_recipe() -> None:
    recipe = REPOSITORY / "configs" / "vlm_guide.yaml"
    listed = re.findall(r"^#   (E\d), E\d +((?:--\w+ \w+ ?)+)", recipe.read_text(), re.MULTILINE)
    found = {}
    for name, flags in listed:
        config = stages_of(VlmConfig.parse(["--config", str(recipe), *flags.split()]))[-1].config
        found[name] = (config.connector.connector, config.connector.connector_depth)
    assert found == {
        "E1": ("linear", None),
        "E3": ("mlp", None),
        "E5": ("resampler", None),
        "E7": ("perceiver", 2),
    }
