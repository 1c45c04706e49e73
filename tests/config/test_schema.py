"""Any kind of run declares its groups of settings, and reads files and flags with the same messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest

from bitgen.config import ConfigError, save_config
from bitgen.config.common import RunSchema, TrainingSettings
from bitgen.config.fields import AtLeastOne, NotNegative, Range, Rate, WrittenAs, setting, settings_of
from bitgen.config.schema import Schema, groups_of


@dataclass
class TowerSettings:
    """A made-up tower."""

    _argument_group_name = "tower"

    width: AtLeastOne = setting(64, "Width of the tower.")
    depth: AtLeastOne | None = setting(None, "Layers of the tower; none: 100% of them.")
    kind: Literal["plain", "deep"] = setting("plain", "What the tower is.")
    layers: Annotated[str, WrittenAs(lambda value: "+".join(value) if isinstance(value, list) else value)] | None = (
        setting(None, "Names of layers, joined by plus signs.")
    )


@dataclass
class LearningSettings:
    """A made-up way to learn."""

    _argument_group_name = "learning"

    rate: Annotated[float, Range("an even whole number", lambda value: value % 2 == 0)] = setting(2.0, "How fast.")
    decay: Rate | None = setting(0.5, "How much is forgotten.")
    delay: NotNegative[int] = setting(0, "Steps before it starts.")
    shuffle: bool = setting(True, "Whether order is random.")


@dataclass
class Toy(Schema):
    """A kind of run that has nothing in common with stage 1."""

    tower: TowerSettings = field(default_factory=TowerSettings)
    learning: LearningSettings = field(default_factory=LearningSettings)

    entry = "src/toy.py"
    description = "Train a toy."
    examples = "examples: none"
    retired = {"speed": 0}

    def check(self) -> None:
        if self.tower.kind == "deep" and self.tower.depth is None:
            raise ConfigError("kind is deep, but depth is none. Write depth 2.")


@dataclass
class ToyRun(RunSchema):
    """A kind of run that is launched as stage 1 is."""

    tower: TowerSettings = field(default_factory=TowerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    entry = "src/toy.py"

    def check_batch(self, global_batch: int, how: str) -> None:
        if self.tower.width < global_batch:
            raise ConfigError(f"width is below {global_batch} ({how}).")


def written(folder: Path, text: str) -> str:
    path = folder / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flag_beats_file_and_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, "tower: {width: 8, layers: [a, b]}\nlearning: {decay: none, rate: 4}\n")
    toy = Toy.parse(["--config", path, "--rate", "6", "--no_shuffle"])
    assert toy == Toy(TowerSettings(8, None, "plain", "a+b"), LearningSettings(6.0, None, 0, False))
    assert Toy.load(save_config(toy, tmp_path / "kept")) == toy
    assert Toy.parse([]) == Toy() and toy.replace(width=9).tower.width == 9
    assert isinstance(toy.replace(width=9), Toy)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("towr: {}", "there is no group 'towr'. Did you mean tower? Groups: tower, learning."),
        ("tower: {widht: 1}", "tower has no setting 'widht'. Did you mean width?"),
        ("tower: {rate: 1}", "rate belongs under learning:, not under tower:."),
        ("width: 1", "width stands outside its group; put it under tower:."),
        ("tower: {width: wide}", "tower.width is 'wide'; write a whole number."),
        ("tower: {depth: deep}", "tower.depth is 'deep'; write a whole number."),
        ("tower: {kind: dep}", "tower.kind is 'dep'; write one of plain, deep. Did you mean deep?"),
        ("learning: {speed: 1}", "learning has no setting 'speed'."),
        ("training: {}", "there is no group 'training'."),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Toy.parse(["--config", path])
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--widht", "1"], "There is no flag --widht. Did you mean --width? See --help."),
        (["--batch_size", "1"], "There is no flag --batch_size. See --help."),  # stage 1 has it, this run has not
        (["--width", "wide"], "--width is 'wide'; write a whole number."),
        (["--width", "0"], "width is 0, but it must be at least 1. The default is 64."),
        (["--depth", "0"], "depth is 0, but it must be at least 1. The default is None."),
        (["--rate", "3"], "rate is 3.0, but it must be an even whole number. The default is 2.0."),
        (["--decay", "1"], "decay is 1.0, but it must be from 0 to below 1. The default is 0.5."),
        (["--delay", "-1"], "delay is -1, but it must be 0 or more. The default is 0."),
        (["--kind", "deep"], "kind is deep, but depth is none. Write depth 2."),
    ],
)
def test_wrong_flags_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Toy.parse(argv)
    assert str(caught.value) == message


def test_a_setting_that_is_gone_is_passed_over_where_it_did_nothing(tmp_path: Path) -> None:
    assert Toy.load(written(tmp_path, "learning: {speed: 0}")) == Toy()


def test_help_is_the_schemas_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        Toy.parse(["--help"])
    text = capsys.readouterr().out
    assert "python src/toy.py [--config FILE]" in text and "Train a toy." in text and "examples: none" in text
    assert "without it the defaults" in text and "100% of them" in text and "--kind {plain,deep}" in text
    assert "learning:" in text and "(default: 64)" in text and "--vision_encoder" not in text


def test_the_default_file_is_read_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "default_file", tmp_path / "toy.yaml")
    assert Toy.parse([]).tower.width == 64
    other = tmp_path / "other.yaml"
    other.write_text("tower: {depth: 3}")
    written(tmp_path, "tower: {width: 8}")
    assert Toy.parse([]).tower.width == 8
    assert Toy.parse(["--config", str(other)]).tower == TowerSettings(depth=3)


@pytest.mark.parametrize("group", [TowerSettings, LearningSettings])
def test_hints_are_plain_and_ranges_are_found_inside_of_optional_types(group: type) -> None:
    found = settings_of(group)
    assert {name: setting.hint for name, setting in found.items()} == get_type_hints(group)
    ranged = {name for name, setting in found.items() if setting.range is not None}
    assert ranged == ({"width", "depth"} if group is TowerSettings else {"rate", "decay", "delay"})


def test_a_schema_that_cannot_be_one_is_refused() -> None:
    @dataclass
    class Misnamed(Schema):
        learning: TowerSettings = field(default_factory=TowerSettings)

    @dataclass
    class Second(TowerSettings):
        _argument_group_name = "second"

    @dataclass
    class Doubled(Schema):
        tower: TowerSettings = field(default_factory=TowerSettings)
        second: Second = field(default_factory=Second)

    for schema, words in ((Misnamed, "not named learning"), (Doubled, "two settings of one name")):
        with pytest.raises(AssertionError, match=words):
            groups_of(_resolved(schema, locals()))


def _resolved(schema: type, names: dict[str, Any]) -> type:
    """The annotations of a class that stands in a function, as types: its module does not know their names."""
    schema.__annotations__ = {name: {**globals(), **names}[text] for name, text in schema.__annotations__.items()}
    return schema


def test_a_run_is_checked_against_launcher_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    ToyRun.from_flat({"batch_size": 64}).validate()
    with pytest.raises(ConfigError, match=r"width is below 128 \(batch_size 128 x 1 processes\)"):
        ToyRun().validate()
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node=2 src/toy.py --use_ddp True --num_gpus 2"):
        ToyRun().replace(num_gpus=2).validate()
    sharded = ToyRun.from_flat(
        {"batch_size": 8, "parallel": "sharded", "num_gpus": 8, "use_ddp": True, "device": "cpu"}
    )
    sharded.validate(world_size=8)
    with pytest.raises(ConfigError, match="width is below 256"):
        sharded.replace(batch_size=32).validate(world_size=8)
