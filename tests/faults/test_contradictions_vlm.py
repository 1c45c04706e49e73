"""What does not fit together in a vision-language model of parts is said before the first step, with its numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitgen.commands import train_vlm
from bitgen.config.values import ConfigError
from bitgen.config.vlm import VlmConfig, stages_of
from bitgen.data.conversations.records import Turn
from bitgen.data.conversations.writer import writing_conversations
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.vlm.description import Description, LanguageSource, VisionSource
from faults.test_bad_inputs_vlm import TINY_VLM
from support.tiny_vlms import language_folder

ANSWER = Turn("assistant", "a red square")


def refused(tmp_path: Path, capsys, **settings: object) -> str:
    """The one line that an entry ends with, of settings of which something is wrong."""
    folders = {"output_dir": tmp_path / "run", "log_dir": tmp_path / "log"}
    flags = [part for name, value in {**TINY_VLM, **folders, **settings}.items() for part in (f"--{name}", str(value))]
    with pytest.raises(SystemExit) as end:
        train_vlm.main(flags)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and said.startswith("error: "), said
    return said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 65}, "max_length is 65, and language_positions 64"),
        ({"max_length": 8, "vision_patch_size": 7}, "16 tokens, and the text before them are longer than 8 tokens"),
        ({"language_hidden_size": 30}, "language_hidden_size is 30 and language_num_heads 2"),
        ({"vision_hidden_size": 33}, "vision_hidden_size is 33, which vision_num_heads 2 do not divide"),
        (
            {"connector": "resampler", "connector_queries": 4, "connector_heads": 5},
            "heads is 5, which does not divide the language width 32; write a divisor of it, as heads: 4 (setting "
            "connector_heads)",
        ),
        (
            {"connector": "c_abstractor", "connector_queries": 5},
            "queries is 5; write 64 or 144, say (setting connector_queries)",
        ),
        ({"connector": "pixel_shuffle", "connector_factor": 3}, "write a divisor of 2 (setting connector_factor)"),
        ({"connector_depth": 0}, "its depth is 0; it must be at least 1 (setting connector_depth)"),
        ({"quantization": "4bit"}, "quantization is on, but a 'random' language model is trained whole"),
        ({"language_model": "nobody/nothing", "quantization": "none"}, "language model nobody/nothing"),
        ({"vision_encoder": "nobody/nothing"}, "nobody/nothing"),
        ({"num_frames": 0}, "num_frames"),
        ({"select_layer": "-9"}, "select_layer is -9"),
        ({"trains": "adapter"}, "trains names the adapter, but adapter is none"),
        (
            {"trains": "language", "language_dtype": "bfloat16", "language_model": "nobody/nothing"},
            "bfloat16 would round most of their updates away. Write language_dtype float32",
        ),
        ({"val_ratio": 0}, "val_ratio"),
        ({"template": "no such"}, "template 'no such' is unknown"),
        ({"adapter": "lora", "adapter_targets": "no_such"}, "no_such"),
        ({"vision_encoder": "features"}, "holds pictures, and vision_encoder is 'features'"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path, capsys, settings: dict, words: str) -> None:
    said = refused(tmp_path, capsys, **settings)
    assert words in said, said
    assert not list(tmp_path.glob("run/step-*"))


def features(folder: Path, encoder: str, shape: tuple[int, int] = (4, 6)) -> Path:
    info = DatasetInfo("features", "test", feature_shape=shape, feature_dtype="float32", encoder=encoder)
    records = [Record(str(n), np.ones(shape, np.float32).tobytes(), ["a red square"]) for n in range(4)]
    write_dataset(folder, iter(records), info)
    return folder


def test_a_sequence_longer_than_a_language_model_was_made_for(tmp_path, capsys) -> None:
    folder = language_folder(tmp_path / "lm")
    said = refused(tmp_path, capsys, language_model=str(folder), template="tokenizer", max_length=513)
    assert "max_length is 513" in said and "512 positions" in said


def test_a_tokenizer_with_more_tokens_than_the_language_model(tmp_path, capsys) -> None:
    folder = language_folder(tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": config["vocab_size"] + 5, "content": "<z>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = refused(tmp_path, capsys, language_model=str(folder), template="tokenizer", max_length=64)
    assert str(folder) in said and "its tokenizer has ids up to" in said


def test_held_out_features_of_another_encoder(tmp_path, capsys) -> None:
    ours = features(tmp_path / "a", "facebook/dinov2-base")
    given = {"vision_encoder": "features", "train_data": ours}
    said = refused(tmp_path, capsys, **given, val_data=features(tmp_path / "b", "openai/clip"))
    assert "features of the encoder openai/clip, train_data of facebook/dinov2-base" in said
    said = refused(tmp_path, capsys, **given, val_data=features(tmp_path / "c", "openai/clip", (5, 6)))
    assert "features of (5, 6), train_data of (4, 6)" in said


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(file, "png")
    return file.getvalue()


def talks(folder: Path, *conversations: list[Turn]) -> Path:
    with writing_conversations(folder, "test") as writer:
        for number, turns in enumerate(conversations):
            writer.add(str(number), [[writer.picture(f"{number}", png())]], turns)
    return folder


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """A run whose tokenizer conversations of a folder can be written with."""
    folder = tmp_path_factory.mktemp("before")
    flags = {**TINY_VLM, "output_dir": folder / "run", "log_dir": folder / "log"}
    assert train_vlm.main([part for name, value in flags.items() for part in (f"--{name}", str(value))]) == 0
    return folder / "run"


def test_conversations_of_no_use_are_named_with_their_text(tmp_path, capsys, before) -> None:
    asked = Turn("user", "<image>\nWhat is it?")
    data = talks(tmp_path / "long", *[[asked, ANSWER, Turn("user", "Where?"), ANSWER]] * 2)
    said = refused(tmp_path, capsys, init_from=before, train_data=data)
    assert "none of 2 conversations can be used, the first: " in said and "plain is for one caption" in said
    assert "What is it?" in said


def test_a_stage_of_conversations_goes_on_from_one_of_captions(tmp_path, before) -> None:
    """Visuals of conversations may have more pictures, which changes nothing in a connector without places for them."""
    data = talks(tmp_path / "data", *[[Turn("user", "<image>\nWhat is it?"), ANSWER]] * 4)
    folders = {"output_dir": tmp_path / "run", "log_dir": tmp_path / "log"}
    flags = {**TINY_VLM, **folders, "train_data": data, "init_from": before}
    assert train_vlm.main([part for name, value in flags.items() for part in (f"--{name}", str(value))]) == 0


def test_a_run_of_another_kind_or_a_damaged_one_is_no_start(tmp_path, capsys, before) -> None:
    (file,) = before.glob("step-*/model.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"\xff")
    try:
        assert "is not what was written" in refused(tmp_path, capsys, init_from=before)
    finally:
        file.write_bytes(whole)
    assert "connector" in refused(tmp_path, capsys, init_from=before, connector="linear")


@pytest.mark.parametrize(
    "stages", ["[2020-01-01]", "[{name: a, learning_rate: .nan}]", "[{name: a, 2020-01-01: 1}]", "&a [*a]", "[[[[]]]]"]
)
def test_stages_that_yaml_can_write_and_json_cannot(tmp_path, stages: str) -> None:
    (tmp_path / "recipe.yaml").write_text(f"training:\n  stages: {stages}\n")
    with pytest.raises(ConfigError) as error:
        stages_of(VlmConfig.parse(["--config", str(tmp_path / "recipe.yaml")]))
    assert "stages" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (None, "own_parts", [["language"]]),
        (None, "own_parts", ["head"]),
        (None, "vision", "an encoder"),
        (None, "connector", [1]),
        (None, "speech", 5),
        ("language", "config", "llama"),
        ("language", "name", 5),
        ("vision", "config", None),
        ("vision", "select_layer", {}),
        ("vision", "adapter_rank", "many"),
        ("speech", "max_length", "long"),
        ("speech", "no_such", 1),
    ],
)
def test_a_description_with_a_field_of_another_kind(part: str | None, name: str, value: object) -> None:
    content = json.loads(json.dumps(Description(LanguageSource("random"), VisionSource({})).to_dict()))
    assert Description.from_dict(content) == Description(LanguageSource("random"), VisionSource({}))
    (content if part is None else content[part])[name] = value
    with pytest.raises(ValueError, match=f"config.json.*{name}") as error:
        Description.from_dict(content)
    assert "\n" not in str(error.value)
