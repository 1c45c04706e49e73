"""Controls that are trained without their pictures: what is seen in training, validation and evaluation."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import torch

from bitgen.checkpoint.manifest import CheckpointError
from bitgen.commands import evaluate
from bitgen.data.questions.records import Question
from bitgen.data.questions.shown import NOTHING, OTHER, OWN, shown
from bitgen.data.questions.writer import writing_questions
from bitgen.data.scenes.tables import render_table, table_scene
from bitgen.export.revisions import export_run
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.trained import open_model
from bitgen.training.snapshot import Snapshots
from support.reasoning import QUESTIONS, config_of, trained

SOURCES = ("scenes", "sort_of_clevr", "folder")


def test_a_batch_is_shown_its_own_pictures_others_or_nothing() -> None:
    pictures = torch.arange(1.0, 7.0).reshape(3, 2)
    assert torch.equal(shown(pictures, OWN), pictures)
    assert torch.equal(shown(pictures, NOTHING), torch.zeros(3, 2))
    others = shown(pictures, OTHER)
    assert not (others == pictures).any() and sorted(others.flatten().tolist()) == [1, 2, 3, 4, 5, 6]
    assert torch.equal(shown(pictures[:1], OTHER), torch.zeros(1, 2))  # there is no other: the own is never seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("questions") / "folder"
    with writing_questions(path, "a test") as writer:
        for number in range(4):
            file = io.BytesIO()
            render_table(table_scene(("folder", number)), 64, ("folder", number)).save(file, "PNG")
            writer.add(
                Question(f"{number}", writer.picture(f"{number}.png", file.getvalue()), "what is it?", ("a ring",))
            )
    return str(path)


@pytest.fixture
def looked_at(monkeypatch) -> list[torch.Tensor]:
    """The batches of pictures that a model has seen, in their order."""
    found: list[torch.Tensor] = []
    encode = BitGenModel.encode_image

    def looking(self, pixel_values=None, *args, **kwargs):
        found.append(pixel_values.clone())
        return encode(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(BitGenModel, "encode_image", looking)
    monkeypatch.setattr("bitgen.tasks.reasoning_data._VALIDATED", 40)
    return found


@pytest.mark.parametrize("which", [OTHER, NOTHING])
@pytest.mark.parametrize("source", SOURCES)
def test_what_a_run_sees(
    tmp_path: Path, captioner: str, folder: str, looked_at: list[torch.Tensor], capsys, caplog, source: str, which: str
) -> None:
    data = folder if source == "folder" else source
    settings = {**QUESTIONS, "question_data": data, "batch_size": 4, "max_steps": 1, "num_workers": 0}
    if source != "folder":
        settings["question_val_data"] = data
    seen = {}
    for shows in (OWN, which):
        config = config_of(tmp_path / shows, init_from=captioner, **settings, picture_shown=shows)
        looked_at.clear()
        trained(config)
        seen[shows] = [*looked_at]
    first, *held_out = zip(*(seen[shows] for shows in (OWN, which)), strict=True)
    assert torch.equal(first[1], shown(first[0], which))  # training
    assert bool(held_out) == (source != "folder")
    for own, control in held_out:
        assert own.any()
        if which == NOTHING:
            assert not control.any()
        else:  # of drawn scenes that of a scene that nobody is asked about
            rows = [(control == one).flatten(1).all(dim=1).any() for one in own]
            assert any(rows) == (source != "scenes")
            assert source == "scenes" or torch.equal(control, shown(own, which))
    looked_at.clear()
    with caplog.at_level(logging.INFO):
        evaluate.main(["--checkpoint", config.output.output_dir, "--data", data, "--task", "reasoning",
                       "--max_images", "3", "--output", str(tmp_path / "results.json")])  # fmt: skip
    assert f"picture_shown {which}" in caplog.text
    assert looked_at and (which == OTHER or not looked_at[0].any())
    assert json.loads((tmp_path / "results.json").read_text())


def test_a_checkpoint_from_before_a_setting_had_its_default(tmp_path: Path, captioner: str, monkeypatch) -> None:
    """Else each new setting would make all runs of before impossible to go on with."""
    settings = {**QUESTIONS, "max_steps": 1, "question_val_data": None}
    trained(config_of(tmp_path, init_from=captioner, **settings))
    check = Snapshots._check_identity

    def of_before(self, checkpoint):
        assert checkpoint.state["run"].pop("picture_shown") == OWN
        check(self, checkpoint)

    monkeypatch.setattr(Snapshots, "_check_identity", of_before)
    again = {**settings, "max_steps": 2, "resume": "auto"}
    with pytest.raises(CheckpointError, match="picture_shown was not set and is nothing"):
        trained(config_of(tmp_path, init_from=captioner, **again, picture_shown=NOTHING))
    assert trained(config_of(tmp_path, init_from=captioner, **again)).progress.step == 2


def test_an_export_keeps_what_a_control_saw(tmp_path: Path, captioner: str) -> None:
    settings = {**QUESTIONS, "max_steps": 1, "question_val_data": None}
    config = config_of(tmp_path, init_from=captioner, **settings, picture_shown=NOTHING)
    trained(config)
    folder = export_run(config.output.output_dir, str(tmp_path / "export"), True, False, {})
    assert open_model(folder).config.reasoning.picture_shown == NOTHING
