"""The configuration: what wins over what, and that every mistake is answered with its name and its remedy."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitgen.config import Config, ConfigError, load_config, parse_config, save_config, values
from bitgen.config.stage1_settings import VisionSettings
from bitgen.config.values import coerce
from bitgen.config.vlm import VlmConfig, stages_of
from support.warm import run_warm

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def written(folder: Path, text: str) -> str:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def error_of(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(list(argv))
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ shipped files


STAGE1 = [path for path in CONFIGS if not path.stem.startswith("vlm_")]


@pytest.mark.parametrize("path", STAGE1, ids=lambda path: path.stem)
def test_every_shipped_file_is_valid(path: Path) -> None:
    config = parse_config(["--config", str(path)])
    assert config == load_config(path)


RECIPES = [path for path in CONFIGS if path.stem.startswith("vlm_") and not path.stem.startswith("vlm_matrix")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    stages = stages_of(VlmConfig.parse(["--config", str(path)]))
    assert len(stages) > 1 and all(stage.config.trained_parts for stage in stages)


def test_the_expected_files_are_shipped() -> None:
    assert {"quickstart", "stage1", "flickr8k_images", "flickr8k_features"} <= {path.stem for path in CONFIGS}


def test_stage1_file_holds_every_default_and_is_the_default() -> None:
    path = next(path for path in CONFIGS if path.stem == "stage1")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {group: set(fields) for group, fields in content.items()} == {
        group: set(fields) for group, fields in Config().to_dict().items()
    }
    assert load_config(path) == Config() == parse_config([])


def test_no_arguments_give_the_values_of_the_owners_documents() -> None:
    flat = parse_config([]).flat()
    expected = dict(
        vision_encoder="facebook/dinov2-base", image_size=224, embed_dim=128, num_layers=3, num_heads=4, ffn_dim=256,
        vision_embed_dim=128, vocab_size=50257, max_seq_len=256, memory_size=32, memory_alpha=0.2, direct_writing=True,
        lora_rank=16, lora_alpha=32, lora_dropout=0.1, lora_warmup_epochs=5, queue_size=4096, temperature=0.5,
        contrastive_weight=1.0, itm_weight=0.5, memory_kl_weight=0.1, text_loss_weight=0.0, batch_size=128,
        grad_accum_steps=2, learning_rate=2e-4, weight_decay=0.02, num_epochs=50, warmup_steps=1000, max_grad_norm=1.0,
        temperature_lr_factor=50.0, itm_temperature=0.07, output_dir="checkpoints/stage1", log_dir="logs/stage1",
        max_checkpoints_to_keep=5,
    )  # fmt: skip
    assert {name: flat[name] for name in expected} == expected


def test_setting_names_are_unique_over_all_groups() -> None:
    names = [name for group in Config().to_dict().values() for name in group]
    assert len(names) == len(set(names))


# --------------------------------------------------------------------------------------------------------- precedence


def test_flag_beats_file_and_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  batch_size: 8\n  seed: 7\n")
    config = parse_config(["--config", path, "--seed", "9"])
    assert (config.training.seed, config.training.batch_size, config.training.num_epochs) == (9, 8, 50)


def test_a_flag_equal_to_the_default_still_beats_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  batch_size: 8\nmemory:\n  use_memory: false\n")
    config = parse_config([f"--config={path}", "--batch_size=128", "--use_memory", "True"])
    assert config.training.batch_size == 128 and config.memory.use_memory


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--use_memory", "False"], False),
        (["--use_memory", "false"], False),
        (["--use_memory=no"], False),
        (["--no_use_memory"], False),
        (["--use_memory"], True),
        (["--use-memory", "True"], True),
    ],
)
def test_ways_to_write_a_boolean_flag(argv: list[str], expected: bool, tmp_path: Path) -> None:
    path = written(tmp_path, f"memory:\n  use_memory: {not expected}\n")
    assert parse_config(["--config", path, *argv]).memory.use_memory is expected


def test_none_empties_an_optional_setting(tmp_path: Path) -> None:
    path = written(tmp_path, "training:\n  max_steps: 10\ndata:\n  train_data: somewhere\n")
    config = parse_config(["--config", path, "--max_steps", "none", "--train_data", "None"])
    assert config.training.max_steps is None and config.data.train_data is None


def test_an_empty_file_or_group_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()
    assert load_config(written(tmp_path, "lora:\n")) == Config()


# -------------------------------------------------------------------------------------------------------------- types


def test_yaml_values_are_read_as_their_field_wants_them(tmp_path: Path) -> None:
    text = (
        "training: {learning_rate: 2e-4, num_epochs: 1e1, weight_decay: 1, use_ddp: no, max_steps: null}\n"
        "lora: {init_lora_weights: true, lora_layers: [8, 9]}\n"
    )
    config = load_config(written(tmp_path, text))
    assert config.training.learning_rate == 2e-4 and isinstance(config.training.learning_rate, float)
    assert config.training.num_epochs == 10 and isinstance(config.training.num_epochs, int)
    assert config.training.weight_decay == 1.0 and isinstance(config.training.weight_decay, float)
    assert config.training.use_ddp is False and config.training.max_steps is None
    assert config.lora.peft_init is True and config.lora.layer_indices == [8, 9]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, "x"), (int, 2.5), (int, True), (int, [1]), (int, None), (int, "inf"), (int, ""), (float, "nan"),
        (float, False), (float, "1,5"), (float, {}), (bool, "maybe"), (bool, 2), (bool, None), (bool, 1.0), (str, 3),
        (str, ""), (str, None), (str, ["a"]), (int | None, "nothing"), (float, 10**400),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_by_name(hint: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match="^--thing "):
        coerce(hint, value, "--thing")


@given(st.integers(-(10**12), 10**12))
def test_integers_survive_text(number: int) -> None:
    assert coerce(int, str(number), "n") == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_text(number: float) -> None:
    assert coerce(float, repr(number), "x") == number


def test_saving_and_loading_gives_the_same_configuration(tmp_path: Path) -> None:
    config = Config().replace(
        learning_rate=1e-5, lora_layers="8,9", max_steps=7, train_data="Bilder/Müller", init_lora_weights="false",
        vision_revision="0123456", pseudoinverse_tolerance=3e-7, use_ddp=True,
    )  # fmt: skip
    path = save_config(config, tmp_path / "new" / "folder")
    assert path.name == "config.yaml"
    assert load_config(path) == config
    assert Config.from_dict(config.to_dict()) == config


def test_a_setting_that_is_gone_is_passed_over_where_it_did_nothing(tmp_path: Path) -> None:
    """A checkpoint of a run before its removal still loads; one that used it is not taken for something else."""
    folder = tmp_path / "run"
    path = save_config(Config(), folder)
    path.write_text(path.read_text().replace("  token_dropout:", "  text_first: 0.0\n  token_dropout:"))
    assert load_config(path) == Config()
    path.write_text(path.read_text().replace("text_first: 0.0", "text_first: 0.5"))
    with pytest.raises(ConfigError, match="objective has no setting 'text_first'"):
        load_config(path)


def test_loading_checks_no_machine(tmp_path: Path) -> None:
    """A checkpoint of four GPUs is evaluated on a laptop."""
    config = Config().replace(device="cuda", use_ddp=True, num_gpus=4)
    assert load_config(save_config(config, tmp_path)) == config


# ------------------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainning:\n  seed: 1\n", ["trainning", "Did you mean training?"]),
        ("training:\n  bacth_size: 1\n", ["bacth_size", "Did you mean batch_size?"]),
        ("training:\n  lora_rank: 1\n", ["lora_rank", "under lora:"]),
        ("batch_size: 1\n", ["batch_size", "under training:"]),
        ("training: 5\n", ["training", "settings"]),
        ("training: [1]\n", ["training", "a list"]),
        ("- 1\n", ["a list", "vision, lora"]),
        ("hello\n", ["text"]),
        ("1: {}\n", ["no group 1"]),
        ("training:\n  seed: 1\n  seed: 2\n", ["line 3", "'seed' is written twice"]),
        ("lora: {}\nlora: {}\n", ["line 2", "'lora' is written twice"]),
        ("training:\n  seed: [1\n", ["not valid YAML"]),
        ("training:\n\tseed: 1\n", ["line 2", "not valid YAML"]),
        ("data:\n  train_data: 2024-13-45\n", ["not valid YAML"]),
        ("? [1]\n: 2\n", ["my.yaml"]),
        ("training: !!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
        ("training:\n  batch_size: many\n", ["training.batch_size", "'many'", "a whole number"]),
        ("training:\n  batch_size:\n", ["training.batch_size", "no value"]),
        ("training:\n  precision: fp8\n", ["training.precision", "auto, bf16, fp32, fp16"]),
        ("training:\n  use_ddp: 3\n", ["training.use_ddp", "true or false"]),
        ("vision:\n  vision_revision: 1234567\n", ["vision.vision_revision", "in quotes"]),
        ("data:\n  train_data: ''\n", ["data.train_data", "is empty"]),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, expected: list[str], tmp_path: Path) -> None:
    message = error_of("--config", written(tmp_path, text))
    for part in ["my.yaml", *expected]:
        assert part in message


@pytest.mark.parametrize(
    "written",
    ["data/a:2,data/b:1", "[data/a:2, data/b:1]", "{data/a: 2, data/b: 1}", "\n    - data/a:2\n    - data/b:1"],
)
def test_several_sources_in_yaml(tmp_path: Path, written: str) -> None:
    path = tmp_path / "mixed.yaml"
    path.write_text(f"data:\n  train_data: {written}\n")
    assert load_config(path).data.train_data == "data/a:2,data/b:1"


def test_a_file_that_is_not_one(tmp_path: Path) -> None:
    assert "is a folder" in error_of("--config", str(tmp_path))
    save_config(Config(), tmp_path)
    assert str(tmp_path / "config.yaml") in error_of("--config", str(tmp_path))
    missing = error_of("--config", str(tmp_path / "confg.yaml"))
    assert "no configuration file" in missing and f"Did you mean {tmp_path / 'config.yaml'}?" in missing
    assert "no configuration file" in error_of("--config", str(tmp_path / "no" / "such" / "folder.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "not UTF-8" in error_of("--config", str(tmp_path / "binary.yaml"))
    two = [argument for _ in range(2) for argument in ("--config", str(tmp_path / "config.yaml"))]
    assert "name one file" in error_of(*two)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_config(Config(), tmp_path)

    def refusing(file: object, *arguments: object, **options: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(values, "open", refusing, raising=False)  # root may read every file
    assert "cannot be read" in error_of("--config", str(path))


# --------------------------------------------------------------------------------------------------------- wrong flags


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--bacth_size", "3"], ["--bacth_size", "Did you mean --batch_size?"]),
        (["--learning-rte=3"], ["--learning-rte", "Did you mean --learning_rate?"]),
        (["--batch", "3"], ["no flag --batch"]),  # abbreviations are refused
        (["--zzzz"], ["no flag --zzzz"]),
        (["stray"], ["'stray' is no flag"]),
        (["--batch_size", "x"], ["--batch_size", "'x'", "a whole number"]),
        (["--batch_size"], ["--batch_size", "expected one argument"]),
        (["--batch_size", "none"], ["--batch_size"]),
        (["--temperature", "warm"], ["--temperature", "a number"]),
        (["--use_ddp", "perhaps"], ["--use_ddp", "true or false"]),
        (["--fusion", "backbon"], ["--fusion", "Did you mean backbone?"]),
        (["--train_data", ""], ["--train_data", "is empty"]),
        (["--config"], ["--config", "expected one argument"]),
    ],
)
def test_wrong_flags_are_named(argv: list[str], expected: list[str]) -> None:
    message = error_of(*argv)
    for part in expected:
        assert part in message


# --------------------------------------------------------------------------------------------------- what a person sees


def test_help_explains_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in Config().flat():
        assert f"--{name} " in text
    assert "(default: 4096)" in text and "torchrun" in text and "--config configs/quickstart.yaml" in text


def test_every_setting_has_a_help_text_and_a_plain_type() -> None:
    hints = get_type_hints(Config)
    for group, settings in ((field.name, hints[field.name]) for field in dataclasses.fields(Config)):
        assert settings._argument_group_name == group
        for field in dataclasses.fields(settings):
            assert set(field.metadata) == {"help"} and len(field.metadata["help"]) > 15, field.name
            coerce(get_type_hints(settings)[field.name], field.default, field.name)
    assert get_type_hints(VisionSettings)["image_size"] == int | None


def test_an_entry_ends_with_one_clean_message() -> None:
    code = (
        "from bitgen.config import exit_on_config_error, parse_config\n"
        "with exit_on_config_error():\n"
        "    parse_config()\n"
    )
    done = run_warm(["-c", code, "--num_heads", "5"])
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: num_heads is 5") and "Traceback" not in done.stderr
    second = run_warm(["-c", f"import os\nos.environ['LOCAL_RANK'] = '1'\n{code}", "--num_heads", "5"])
    assert second.returncode == 2 and not second.stderr
