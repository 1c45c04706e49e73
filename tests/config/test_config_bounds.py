"""Settings beyond measure: numbers that are none, sizes that no machine has, files that grow when they are read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from bitgen.config import Config, ConfigError, load_config
from bitgen.config.fields import settings_of
from bitgen.config.schema import flat_settings_of
from bitgen.config.sources import parse_sources

KNOWN = flat_settings_of(Config)
GROUP_OF = {name: group.name for group in fields(Config) for name in settings_of(get_type_hints(Config)[group.name])}
FLOATS = [name for name, setting in KNOWN.items() if float in (setting.hint, *getattr(setting.hint, "__args__", ()))]
INTEGERS = [name for name, setting in KNOWN.items() if int in (setting.hint, *getattr(setting.hint, "__args__", ()))]


def refused(name: str, text: str, folder: Path) -> list[str]:
    """What is said of a value as a flag, and in a file."""
    path = folder / "my.yaml"
    path.write_text(f"{GROUP_OF[name]}:\n  {name}: {text}\n")
    said = []
    for read in (lambda: Config.parse([f"--{name}", text.replace(".nan", "nan").replace(".inf", "inf")]),
                 lambda: load_config(path).validate(world_size=1)):  # fmt: skip
        with pytest.raises(ConfigError, match=name) as caught:
            read()
        said.append(str(caught.value))
    return said


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize("name", FLOATS + INTEGERS[:3])
def test_a_number_is_finite(name: str, text: str, tmp_path: Path) -> None:
    refused(name, text, tmp_path)


@pytest.mark.parametrize("name", [name for name in INTEGERS if name != "feature_cache_pool"])
def test_every_whole_number_has_an_upper_bound(name: str, tmp_path: Path) -> None:
    bound = KNOWN[name].range
    assert bound is not None and bound.most is not None
    said = refused(name, str(bound.most + 1), tmp_path)
    assert all(f"{bound.most:,} at most" in text for text in said)
    Config().replace(**{name: bound.most})
    assert all(len(text) < 200 for text in refused(name, "0x" + "f" * 20_000, tmp_path))


def test_the_shipped_sizes_are_far_below_the_bounds() -> None:
    for name, value in Config().flat().items():
        bound = KNOWN[name].range
        if bound is not None and bound.most is not None and value is not None:
            assert value * 20 <= bound.most, name


@pytest.mark.parametrize(
    ("settings", "bound"),
    [({"vocab_size": 10**12}, "10,000,000"), ({"num_layers": 10**6}, "1,000"), ({"queue_size": 10**9}, "10,000,000")],
)
def test_slips_that_ended_in_a_crash(settings: dict[str, int], bound: str) -> None:
    with pytest.raises(ConfigError, match=f"can be {bound} at most"):
        Config().replace(**settings).validate(world_size=1)


def bomb(kind: str) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    if kind == "merge":
        lines = ["a0: &a0 {x: 1}"]
    for n in range(1, 12):
        names = ", ".join([f"*a{n - 1}"] * 9)
        lines.append(f"a{n}: &a{n} {{<<: [{names}]}}" if kind == "merge" else f"a{n}: &a{n} [{names}]")
    group, name = {"value": ("training", "seed"), "layers": ("lora", "lora_layers"), "merge": ("training", "seed"),
                   "sources": ("data", "train_data")}[kind]  # fmt: skip
    value = "{a: *a11}" if kind == "sources" else "*a11"
    return "\n".join([*lines, f"{group}:", f"  {name}: {value}", ""])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (bomb("value"), "aliases make it more than"),
        (bomb("layers"), "aliases make it more than"),
        (bomb("sources"), "aliases make it more than"),
        (bomb("merge"), "aliases make it more than"),
        ("a: &a [*a]\n", "aliases make it"),
        ("training:\n  seed: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
        ("training:\n  seed: " + "[" * 150 + "]" * 150 + "\n", "training.seed is a list"),
        ("training:\n  seed: {a: {b: [1]}}\n", "training.seed is a mapping"),
        ("training:\n  seed: " + "x" * 5000 + "\n", "'x{80}...'"),
        ('training:\n  seed: "a\\x1b[2Jb\\n"\n', r"a\\x1b\[2Jb\\n"),
        ("#" * (1 << 20) + "\n", "more than 1,048,576 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_a_file_that_grows_or_is_hostile_is_one_short_message(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert len(str(caught.value)) < 400 + len(str(path)) and str(caught.value).isprintable()


def test_aliases_of_a_usual_kind_still_read(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("model: &sizes {embed_dim: 64}\nvision: {vision_hidden_size: 64}\nlora: {lora_rank: &r 4}\n"
                    "memory: {memory_dim: *r}\n")  # fmt: skip
    config = load_config(path)
    assert config.memory.memory_dim == 4 and config.model.embed_dim == 64


def test_a_weight_is_finite() -> None:
    with pytest.raises(ValueError, match="no finite number"):
        parse_sources(f"a:{'9' * 400},b:1")
