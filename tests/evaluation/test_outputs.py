"""Files of an evaluation and an export: not into one another, and not onto what is read; flags within bounds."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import bitgen
from bitgen.commands import caption, evaluate, export
from bitgen.evaluation.outputs import check_outputs
from bitgen.export.card import model_card
from bitgen.export.revisions import export_run
from bitgen.show.tables import format_markdown, format_table
from bitgen.tasks.stage1_validation import _markdown
from bitgen.trained import open_model
from support.data import write_features
from support.runs import written_run


@pytest.fixture
def folders(tmp_path):
    """A dataset, a model's folder and a folder of photos, each with a file."""
    write_features(tmp_path / "data", [["a cat"], ["a dog"]], (9, 6))
    for name in ("model", "photos"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bitgen"}')
    (tmp_path / "photos" / "a.png").write_bytes(b"photo")
    (tmp_path / "model" / "results.json").write_text('{"retrieval": {}}')
    (tmp_path / "link").symlink_to(tmp_path / "model")
    (tmp_path / "x.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"output": "x.json", "predictions": "x.json"}, "--predictions .*x.json is --output's file too"),
        ({"output": "x.json", "predictions": "data/../x.json"}, "--predictions .*x.json is --output's file too"),
        ({"output": "link/y", "predictions": "model/y"}, "--predictions .*y is --output's file too"),
        ({"output": "model/config.json"}, "--output .*config.json is a file of the model or dataset beside it"),
        ({"predictions": "link/config.json"}, "--predictions .*config.json is a file of the model"),
        ({"output": "data/bitgen_dataset.json"}, "--output .*bitgen_dataset.json is a file that --data reads"),
        ({"contact_sheet": "photos/a.png"}, "--contact_sheet .*a.png is a file that --images reads"),
        ({"output": "model"}, "--output .*model: cannot write there"),
    ],
)
def test_an_output_takes_the_place_of_nothing(folders, outputs, message):
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    inputs = {"data": str(folders / "data"), "images": str(folders / "photos"), "eval_dir": None}
    with pytest.raises(ValueError, match=message):
        check_outputs({flag: f"{folders}/{path}" for flag, path in outputs.items()}, inputs)
    assert before == {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}


def test_results_may_lie_beside_a_model_and_be_written_again(folders):
    check_outputs({"output": f"{folders}/model/results.json", "predictions": f"{folders}/model/new.json"}, {})
    check_outputs({"output": f"{folders}/x.json", "predictions": None}, {"data": "scenes"})


@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        ([{"image_id": 1, "caption": "a cat"}], True),
        ([{"question_id": "a", "answer": "red"}], True),
        ([{"family": "count", "question": "how many?", "rationale": None, "answer": "2", "way": "direct"}], True),
        ({"blimp": {"anaphor": {"predictions": []}}, "reading": {"reading": {"predictions": []}}}, True),
        ({"model_type": "bitgen"}, False),
        ([{"from": "human", "value": "a dataset"}], False),
        ({"a": {"b": 1}}, False),
    ],
)
def test_so_may_predictions(folders, content, is_ours):
    path = folders / "model" / "predictions.json"
    path.write_text(json.dumps(content))
    try:
        check_outputs({"predictions": str(path)}, {})
    except ValueError as error:
        assert not is_ours and "a file of the model or dataset beside it" in str(error)
    else:
        assert is_ours


def test_the_entry_asks_before_any_work(folders, capsys):
    same = str(folders / "same.json")
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--checkpoint", "nowhere", "--data", "scenes", "--output", same, "--predictions", same])
    assert stopped.value.code == 2 and "is --output's file too" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["step-00000007/export", "tokenizer/deep/export"])
def test_an_export_does_not_go_into_what_it_is_made_of(tmp_path, where):
    run = written_run(features=True)
    before = sorted(run.rglob("*"))
    with pytest.raises(ValueError, match="which holds a model or a dataset: name a folder outside"):
        export_run(str(run), str(run / where), False, False, {})
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, '{"a": NaN}'])
def test_results_of_another_shape_are_refused(tmp_path, content, capsys):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        export.main(["--checkpoint", "x", "--output", "y", "--results", str(tmp_path / "results.json")])
    assert stopped.value.code == 2 and "results.json cannot be read" in capsys.readouterr().err


CAPTION = (caption, ["photo.png", "--model", "m"])
EVALUATE = (evaluate, ["--checkpoint", "m", "--data", "scenes"])


@pytest.mark.parametrize(
    ("entry", "flag", "value", "message"),
    [
        (entry, flag, value, bound)
        for entry in (CAPTION, EVALUATE)
        for flag, value, bound in (
            ("num_beams", "0", "at least 1"),
            ("num_beams", "1000000", "at most 256"),
            ("max_new_tokens", "0", "at least 1"),
            ("max_new_tokens", "10000000000", "at most 1,000,000"),
        )
    ]
    + [
        (EVALUATE, flag, value, bound)
        for flag, value, bound in (
            ("batch_size", "1000000000", "at most 65,536"),
            ("bootstrap", "1000000000000", "at most 1,000,000"),
            ("num_workers", "100000", "at most 1,024"),
            ("rerank_top_k", "100000000", "at most 100,000"),
            ("rerank_top_k", "-1", "at least 0"),
            ("max_images", "0", "at least 1"),
        )
    ],
)
def test_numbers_have_bounds(entry, flag, value, message, capsys):
    command, arguments = entry
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments, f"--{flag}", value])
    assert stopped.value.code == 2 and f"--{flag} is {value}; it must be {message}" in capsys.readouterr().err


def test_a_search_has_the_same_bounds_in_a_program():
    model = bitgen.load(written_run(), device="cpu")
    with pytest.raises(ValueError, match="num_beams is 100000; it must be from 1 to 256"):
        model.caption(Image.new("RGB", (30, 30)), num_beams=100_000)


def test_a_card_and_a_table_are_not_written_by_data():
    evil = "x|<script>alert(1)</script> [a](javascript:b) `c`\n\n# d \x1b[2J"
    loaded = open_model(written_run(features=True))
    config = loaded.config.replace(train_data=f"data/{evil}".replace("/script", "script"))
    metrics = {evil: {evil: 1.0}}
    plain = model_card(loaded, {"step": 1, "phase": 1}, {"y": {"z": 1.0}}, False)
    card = model_card(loaded._replace(config=config), {"step": 1, "phase": 1}, metrics, False)
    assert len(card.splitlines()) == len(plain.splitlines())
    for text in (card, _markdown(("one",), [(evil,)]), format_markdown(("one",), [(evil,)])):
        assert "<script" not in text and "[a](" not in text.replace("\\[a\\](", "") and "\x1b" not in text
        assert not any(line.startswith("# d") for line in text.splitlines())
    table = format_table(("name", "value"), [(evil, "1")])
    assert len(table.splitlines()) == 3 and "\x1b" not in table and json.dumps(table).count("\\u001b") == 0
