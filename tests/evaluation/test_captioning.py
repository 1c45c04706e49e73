"""`src/evaluate.py --task captioning`, from a checkpoint or an export to scores, captions and a contact sheet."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from bitgen.commands import evaluate
from bitgen.evaluation import captioning
from bitgen.evaluation.caption_metrics import caption_metrics
from bitgen.evaluation.contact_sheet import choose_pictures, write_contact_sheet
from bitgen.evaluation.generation import sample_captions
from bitgen.export.revisions import export_run
from bitgen.trained import open_model
from support.data import write_features
from support.runs import written_run

REFERENCES = [
    [f"a {thing} sat", f"the {thing} runs on"][: 1 + row % 2] for row, thing in enumerate("cat dog mat".split())
]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """A dataset of three images as features, for the models of ``written_run(features=True)``."""
    return write_features(tmp_path_factory.mktemp("features") / "data", REFERENCES, (9, 6))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Files of images 0 and 2; the image between them has none."""
    folder = tmp_path_factory.mktemp("photos")
    for row, colour in ((0, (200, 30, 30)), (2, (30, 30, 200))):
        Image.new("RGB", (80, 40), colour).save(folder / f"{row}.png")
    return folder


def run(checkpoint, data, output, *flags):
    evaluate.main(
        ["--task", "captioning", "--checkpoint", str(checkpoint), "--data", str(data), "--device", "cpu"]
        + ["--output", str(output / "results.json"), "--num_workers", "0", "--precision", "fp32", *flags]
    )
    return json.loads((output / "results.json").read_text())["captioning"]


def pixels_of(path, colour):
    """How many pixels of a PNG have a colour."""
    return int((np.asarray(Image.open(path)) == colour).all(axis=-1).sum())


def test_scores_captions_and_sheet_of_a_run(features, tmp_path, capsys, caplog):
    folder = written_run(features=True)
    found = run(folder, features, tmp_path, "--num_beams", "1", "--predictions", str(tmp_path / "said.json"))
    said = json.loads((tmp_path / "said.json").read_text())
    captions = [entry["caption"] for entry in said]
    loaded = open_model(folder)
    dataset = evaluate.load_split(str(features), loaded, None)
    assert captions == sample_captions(loaded.model, dataset, range(3), loaded.tokenizer)
    assert [entry["image_id"] for entry in said] == ["0.png", "1.png", "2.png"]
    assert found == pytest.approx(caption_metrics(captions, REFERENCES))
    assert {"bleu4", "chrf", "rouge_l", "cider"} <= set(found)
    assert "BLEU-4, %" in capsys.readouterr().out
    # Three grey tiles: features have no pixels, and that is said.
    assert pixels_of(tmp_path / "results_captions.png", (0xD1, 0xD5, 0xDB)) > 3 * 200 * 200
    assert "the dataset holds features: --images DIR" in caplog.text


def test_the_sheet_shows_the_files_of_images_known_as_features(features, photos, tmp_path, caplog):
    sheet = tmp_path / "sheets" / "one.PNG"
    run(written_run(features=True), features, tmp_path, "--images", str(photos), "--contact_sheet", str(sheet))
    for colour in ((200, 30, 30), (30, 30, 200)):
        assert pixels_of(sheet, colour) > 250 * 120  # 80 x 40 on a tile 260 wide
    assert not pixels_of(sheet, (0xD1, 0xD5, 0xDB))
    assert "the dataset holds features" not in caplog.text


def test_scenes_are_shown_as_the_model_sees_them(tmp_path):
    found = run(written_run(), "scenes", tmp_path, "--max_images", "5", "--num_beams", "2", "--max_new_tokens", "4")
    assert found["images"] == 5 and found["references"] == 15
    with Image.open(tmp_path / "results_captions.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 1000 and sheet.height > 700  # two rows
        assert len(sheet.convert("RGB").getcolors(2**24)) > 100


def test_an_export_scores_as_its_checkpoint(features, tmp_path):
    folder = written_run(features=True)
    export = export_run(str(folder), str(tmp_path / "export"), True, False, {})
    assert run(export, features, tmp_path) == run(folder, features, tmp_path)


def test_a_model_of_another_kind_is_no_export(features, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit):
        run(tmp_path, features, tmp_path)
    assert f"--checkpoint {tmp_path} is no exported model" in " ".join(capsys.readouterr().err.split())


def test_captioning_goes_with_other_tasks(features, tmp_path):
    run(written_run(features=True), features, tmp_path, "--task", "retrieval,captioning", "--bootstrap", "0")
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"retrieval", "captioning"}


def test_an_untrained_language_model_is_said(features, tmp_path, caplog):
    run(written_run(features=True, settings={"text_loss_weight": 0.0}), features, tmp_path)
    assert "text_loss_weight was 0 in training" in caplog.text


def test_captions_of_nothing_are_counted_and_said(features, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(captioning, "sample_captions", lambda *_, **__: ["", "a cat sat", ""])
    found = run(written_run(features=True), features, tmp_path)
    assert found["empty_captions"] == 2 and "2 of 3 captions hold no word" in caplog.text
    assert (tmp_path / "results_captions.png").stat().st_size > 1000


def test_one_image_has_no_cider(features, tmp_path, caplog):
    assert run(written_run(features=True), features, tmp_path, "--max_images", "1")["cider"] is None
    assert "CIDEr needs at least two images" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_beams", "0"], "--num_beams is 0; it must be at least 1"),
        (["--max_new_tokens", "0"], "--max_new_tokens is 0; it must be at least 1"),
        (["--contact_sheet", "sheet.jpg"], "--contact_sheet sheet.jpg: it is written as a PNG"),
        (["--images", "nowhere"], "--images nowhere: there is no such folder"),
        (["--data", "scenes"], "--data scenes holds images, and this checkpoint takes features of 9 x 6"),
    ],
)
def test_mistakes_are_named(features, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run(written_run(features=True), features, tmp_path, *flags)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_folders_and_files_of_images_that_cannot_serve_are_named(features, tmp_path, capsys):
    def refused():
        with pytest.raises(SystemExit):
            run(written_run(features=True), features, tmp_path, "--images", str(tmp_path))
        return " ".join(capsys.readouterr().err.split())

    assert f"--images {tmp_path} holds none of the images: the first one would be {tmp_path / '0.png'}" in refused()
    (tmp_path / "0.png").write_bytes(b"no image")
    assert f"--images {tmp_path / '0.png'}" in refused()


def test_a_sheet_that_cannot_be_written_costs_no_results(features, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise ValueError("one.png: cannot write it (No space left on device)")

    monkeypatch.setattr("bitgen.evaluation.contact_sheet.write_whole", full)
    with pytest.raises(SystemExit):
        run(written_run(features=True), features, tmp_path)
    assert "--contact_sheet one.png: cannot write it" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())["captioning"]["images"] == 3


def test_a_sheet_spreads_over_the_images(features, photos, tmp_path):
    dataset = evaluate.load_split(str(features), open_model(written_run(features=True)), None)
    assert [picture.row for picture in choose_pictures(dataset, wanted=2)] == [0, 2]
    with_files = choose_pictures(dataset, photos)
    assert [picture.row for picture in with_files] == [0, 2] and with_files[0].pixels.shape == (40, 80, 3)
    long = "$5 and $6 " + "word " * 100 + "猫"
    write_contact_sheet(tmp_path / "long.png", with_files, [long, ""], [long, long], long)
    with Image.open(tmp_path / "long.png") as sheet:
        assert sheet.width == 4 * (260 + 22) + 22


@pytest.mark.realdata
def test_flickr8k_files_are_found_by_image_id(shared_data):
    class Reader:
        names = (shared_data / "flickr8k" / "split_dev.txt").read_text().split()

        def image_id(self, row):
            return self.names[row]

    class Dataset:
        reader, image_count, kind = Reader(), len(Reader.names), "features"

    chosen = choose_pictures(Dataset(), shared_data / "flickr8k" / "images")
    assert len(chosen) == 24 and chosen[0].row < 50 and chosen[-1].row > 950  # half of the files are here
    assert all(picture.pixels.shape == (224, 224, 3) for picture in chosen)
    assert len({torch.from_numpy(picture.pixels.copy()).float().mean().item() for picture in chosen}) == 24


def test_a_captioner_of_another_seed_is_shown_the_same_scenes():
    """Built-in scenes are a function of the seed, and captions of others would say nothing of these pictures."""
    judged, other = (open_model(written_run(settings={"seed": seed, "scenes_val": 5})) for seed in (3, 4))
    ours = evaluate.load_split("scenes", judged, None)
    theirs = evaluate.load_split("scenes", other, None, judged.config)
    assert [ours.captions_of(i) for i in range(5)] == [theirs.captions_of(i) for i in range(5)]
    own = evaluate.load_split("scenes", other, None)
    assert [ours.captions_of(i) for i in range(5)] != [own.captions_of(i) for i in range(5)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "babylm,memory"], "this checkpoint has no memory"),
        (["--task", "babylm,matching", "--max_images", "1"], "matching needs at least two images"),
        (["--task", "babylm,retrieval", "--captioner", "nowhere"], "--captioner nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_is_said_before_the_long_part(features, tmp_path, monkeypatch, capsys, flags, message):
    def hours(*_):
        raise AssertionError("BabyLM came first")

    monkeypatch.setattr(evaluate, "evaluate_language", hours)
    run_without_memory = written_run(features=True, use_memory=False)
    with pytest.raises(SystemExit):
        evaluate.main(
            ["--checkpoint", str(run_without_memory), "--data", str(features), "--eval_dir", str(tmp_path), *flags]
        )
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_image_without_a_word_to_compare_with_is_named_before_captions_are_written(tmp_path, monkeypatch, capsys):
    folder = write_features(tmp_path / "data", [["a cat sat"], ["?"], ["a mat"]], (9, 6))
    monkeypatch.setattr(captioning, "sample_captions", None)
    monkeypatch.setattr(evaluate, "evaluate", None)
    with pytest.raises(SystemExit):
        evaluate.main(["--checkpoint", str(written_run(features=True)), "--data", str(folder),
                       "--task", "captioning,retrieval"])  # fmt: skip
    assert "image 1 has no reference with a word in it" in " ".join(capsys.readouterr().err.split())
