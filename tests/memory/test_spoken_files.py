"""The file of a memory that the model speaks from: what comes back, files of before, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitgen.memory import EpisodicMemory
from bitgen.memory.spoken import Spoken
from support.data import picture
from support.spoken_memories import (
    CODE,
    KEY,
    TEXTS,
    TOKENS,
    assert_same_spoken,
    finds,
    keys,
    speaking_model,
    spoken_contents,
    warnings,
)


@pytest.fixture
def taught() -> EpisodicMemory:
    memory = EpisodicMemory(*speaking_model())
    memory.write([picture(0), picture(1)], TEXTS[:2])
    memory.tell(TEXTS[2:4])
    return memory


def header(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["bitgen_memory"])


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object], version: int = 3) -> None:
    """Change the tensors of a file, which then has no digest."""
    tensors, settings = load_file(path), header(path) | {"format_version": version}
    change(tensors)
    save_file(tensors, path, {"bitgen_memory": json.dumps(settings)})


def as_before(path: Path) -> None:
    """The file as a model wrote it that did not speak."""
    rewrite(path, lambda tensors: [tensors.pop(name) for name in ("spoken", "spoken_probe")], version=2)


def mute() -> EpisodicMemory:
    """Of the same model without the part that speaks."""
    model, processor = speaking_model()
    model.recall = None
    return EpisodicMemory(model, processor)


def test_what_is_said_comes_back(taught, tmp_path, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    taught.edit("3", TEXTS[4])
    taught.forget("1")
    taught.save(tmp_path / "a.memory")
    other = EpisodicMemory(*speaking_model(), slots=3)
    other.load(tmp_path / "a.memory")
    assert spoken_contents(other) == spoken_contents(taught) and other.spoken.space.slots == 32
    assert_same_spoken(other, taught)
    for cue in ({"image": picture(1)}, {"text": TEXTS[4]}):
        spoken, expected = other.recalled(**cue), taught.recalled(**cue)
        assert spoken.facts == expected.facts
        torch.testing.assert_close(spoken.tokens.tokens, expected.tokens.tokens, atol=1e-5, rtol=1e-5)
    assert header(tmp_path / "a.memory")["format_version"] == 3
    assert load_file(tmp_path / "a.memory")["spoken"].shape == (3, KEY + TOKENS * CODE)


def test_an_empty_memory_that_is_spoken_from_can_be_saved(tmp_path) -> None:
    memory = EpisodicMemory(*speaking_model())
    memory.save(tmp_path / "a.memory")
    memory.load(tmp_path / "a.memory")
    assert len(memory) == 0 and memory.speaks and memory.tell(["the cat"]) == ["1"]


def test_a_model_that_does_not_speak_writes_the_format_of_before(tmp_path) -> None:
    memory = mute()
    memory.write([picture(0)], TEXTS[:1])
    memory.save(tmp_path / "a.memory")
    assert header(tmp_path / "a.memory")["format_version"] == 2
    assert load_file(tmp_path / "a.memory").keys() == {"codes", "probe"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_before_is_recalled_and_not_said_until_it_is_taught_again(
    tmp_path, monkeypatch, caplog, version
) -> None:
    finds(monkeypatch, everything=True)
    memory, path = mute(), tmp_path / "a.memory"
    memory.write([picture(0), picture(1)], TEXTS[:2])
    memory.save(path)
    rewrite(path, lambda tensors: None, version)
    speaker = EpisodicMemory(*speaking_model())
    with caplog.at_level(logging.WARNING):
        speaker.load(path)
    [said] = warnings(caplog, "cannot say")
    assert "2 of 2 episodes" in said and "src/memory.py --model DIR --memory FILE teach IMAGE TEXT" in said
    assert speaker.recall(image=picture(1))[0].text == TEXTS[1] and keys(speaker).eq(0).all()
    assert speaker.recalled(image=picture(1)) == Spoken(None, [], 0.0)
    caplog.clear()
    with caplog.at_level(logging.WARNING), speaker.editing(path):
        speaker.forget("2")
        [again] = speaker.write([picture(1)], TEXTS[1:2])
    assert len(warnings(caplog, "cannot say")) == 1
    assert [episode.id for episode, _ in speaker.recalled(image=picture(1)).facts] == [again]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        speaker.load(path)
    assert "1 of 2 episodes" in warnings(caplog, "cannot say")[0] and header(path)["format_version"] == 3
    speaker.edit("1", TEXTS[4])  # of which there is no key still
    assert keys(speaker)[0].eq(0).all() and speaker.state().expected_speech == 1.0


def test_where_nothing_can_be_said_nothing_of_it_can(taught) -> None:
    """As of a memory that was taught to a model that does not speak."""
    held = taught._held
    assert taught.state().expected_speech == 1.0
    spoken = held.spoken
    for row in range(len(spoken)):
        spoken = spoken.replaced(row, torch.zeros_like(spoken.pairs[row]))
    taught._held = held._replace(spoken=spoken)
    assert taught.state().expected_speech == 0.0


def test_nothing_is_warned_of_where_all_can_be_said(taught, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        taught.save(tmp_path / "a.memory")
        taught.load(tmp_path / "a.memory")
    assert not caplog.records


# ---------------------------------------------------------------- what is refused


def refusal(memory: EpisodicMemory, path: Path) -> str:
    before = (
        memory.episodes,
        memory.codes.pairs.tolist(),
        None if memory.spoken is None else memory.spoken.pairs.tolist(),
    )
    with pytest.raises(ValueError) as raised:
        memory.load(path)
    message = str(raised.value)
    assert str(path) in message and message.isprintable()
    after = (
        memory.episodes,
        memory.codes.pairs.tolist(),
        None if memory.spoken is None else memory.spoken.pairs.tolist(),
    )
    assert after == before
    return message


def test_a_model_that_does_not_speak_refuses_what_was_taught_to_one_that_does(taught, tmp_path) -> None:
    taught.save(tmp_path / "a.memory")
    said = refusal(mute(), tmp_path / "a.memory")
    assert "this one does not: name the model that it was taught with" in said
    as_before(tmp_path / "a.memory")
    memory = mute()
    memory.load(tmp_path / "a.memory")
    assert memory.recall(image=picture(1))[0].text == TEXTS[1]


@pytest.mark.parametrize("part", ["image_key", "text_layers", "code_embedding"])
def test_the_same_model_after_another_training_to_speak_refuses(taught, tmp_path, part) -> None:
    taught.save(tmp_path / "a.memory")
    model, processor = speaking_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in getattr(model.recall, part).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    assert "another training to speak" in refusal(EpisodicMemory(model, processor), tmp_path / "a.memory")


def _spoil(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[name].view(-1)[0].fill_(torch.nan)


def _put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "NaN": (_spoil("spoken"), "is damaged .*NaN or infinity"),
    "NaN in the probe": (_spoil("spoken_probe"), "another training to speak"),
    "no spoken codes": (lambda tensors: tensors.pop("spoken"), "is damaged .*format 3.*is missing"),
    "no probe": (lambda tensors: tensors.pop("spoken_probe"), "is damaged .*format 3.*is missing"),
    "one row fewer": (_put("spoken", lambda codes: codes[1:]), "do not fit together"),
    "one column fewer": (_put("spoken", lambda codes: codes[:, 1:]), "do not fit together"),
    "a flat list": (_put("spoken", torch.flatten), "do not fit together"),
    "whole numbers": (_put("spoken", lambda codes: codes.long()), "do not fit together"),
    "a probe of whole numbers": (_put("spoken_probe", lambda probe: probe.long()), "do not fit together"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused_and_the_memory_is_as_it_was(taught, tmp_path, kind) -> None:
    change, message = DAMAGE[kind]
    taught.save(tmp_path / "a.memory")
    rewrite(tmp_path / "a.memory", change)
    with pytest.raises(ValueError, match=message):
        taught.load(tmp_path / "a.memory")
    refusal(taught, tmp_path / "a.memory")


def test_keys_of_another_width_are_named(taught, tmp_path) -> None:
    taught.save(tmp_path / "a.memory")

    def narrower(tensors: dict[str, Tensor]) -> None:
        tensors.update(spoken=tensors["spoken"][:, 1:].clone(), spoken_probe=tensors["spoken_probe"][1:].clone())

    rewrite(tmp_path / "a.memory", narrower)
    width = KEY + TOKENS * CODE
    assert f"width {width - 1}, this model's have {width}" in refusal(taught, tmp_path / "a.memory")


def test_any_flipped_bit_of_what_is_said_is_named_as_damage(taught, tmp_path) -> None:
    path = tmp_path / "a.memory"
    taught.save(path)
    good = path.read_bytes()
    for bit in range(8 * len(good) - 1, 8 * (len(good) - 3000), -997):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert "is damaged" in refusal(taught, path), bit
