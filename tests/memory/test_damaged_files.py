"""A memory's file that was damaged, made by hand, or is replaced while it is read: right, or one clear line."""

from __future__ import annotations

import json
import random
import re
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitgen.memory import EpisodicMemory
from bitgen.memory.address_space import IMAGE
from bitgen.memory.files import read_memory, write_memory
from support import irregular_files
from support.memories import contents, pairs

TEXTS = ["the cat", "a red dog", "blue mat", "a hill", 'two "dogs" \\ and\na cat, \u00e9\u4e2d\U0001f600']


@pytest.fixture
def taught(memory) -> EpisodicMemory:
    memory.write_codes(pairs(5), TEXTS)
    return memory


def refusal(memory: EpisodicMemory, path: Path) -> str:
    before = contents(memory)
    with pytest.raises(ValueError) as raised:
        memory.load(path)
    message = str(raised.value)
    assert type(raised.value) is ValueError and str(path) in message and message.isprintable(), message
    assert contents(memory) == before
    return message


# ---------------------------------------------------------------- flipped bits


def flips(size: int, header: int, count: int) -> list[int]:
    """Positions of bits: every one of the length, and as many of the header as of the tensors."""
    draw = random.Random(7)
    ranges = (range(64, 8 * header), range(8 * header, 8 * size))
    return [*range(64), *(draw.choice(part) for part in ranges for _ in range(count))]


def test_any_flipped_bit_is_named_as_damage(taught, tmp_path) -> None:
    path = tmp_path / "a.memory"
    taught.save(path)
    good = path.read_bytes()
    for bit in flips(len(good), 8 + int.from_bytes(good[:8], "little"), 250):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert "is damaged" in refusal(taught, path), bit


def test_a_flipped_bit_in_the_header_of_a_file_without_digest_is_harmless_or_refused(taught, tmp_path) -> None:
    path, codes = tmp_path / "a.memory", taught.codes
    taught.save(path)
    _rewrite(path, lambda header: None)
    good = path.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    for bit in flips(end, end - 1, 300):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            taught.load(path)
        except ValueError as error:
            assert str(path) in str(error) and str(error).isprintable()
        else:
            assert torch.equal(taught.codes.pairs, codes.pairs) and len(taught.episodes) == 5


# ---------------------------------------------------------------- headers of another shape


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object], dumps: Callable[[Any], str] = json.dumps) -> None:
    """Change the memory's own header, in a file without a digest."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    own = json.loads(header["__metadata__"]["bitgen_memory"])
    changed = change(own)
    header["__metadata__"] = {"bitgen_memory": dumps(own if changed is None else changed)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


SHAPES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a list": (lambda own: [own], "a list where an object"),
    "a text": (lambda own: "memory", "a text where an object"),
    "null": (lambda own: 0, "where an object"),
    **{
        f"no {key}": (lambda own, key=key: own.pop(key) and None, f"no '{key}'")
        for key in ("format_version", "slots", "sigma", "cue_noise", "next_id", "episodes")
    },
    "slots as text": (lambda own: own.update(slots="32"), "'slots' is a text"),
    "slots true": (lambda own: own.update(slots=True), "'slots' is true or false"),
    "slots huge": (lambda own: own.update(slots=10**9), "slots is 1000000000"),
    "slots of 2,000 digits": (lambda own: own.update(slots=10**2000), "too large a number"),
    "widen a number": (lambda own: own.update(widen=1), "'widen' is a whole number"),
    "sigma huge": (lambda own: own.update(sigma=1e300), "sigma is 1e.300"),
    "sigma null": (lambda own: own.update(sigma=None), "'sigma' is null"),
    "sigma not finite": (lambda own: own.update(sigma=float("nan")), "NaN is no number"),
    "cue_noise negative": (lambda own: own.update(cue_noise=-1), "cue_noise is -1"),
    "seed beyond 64 bits": (lambda own: own.update(seed=2**65), "seed is"),
    "seed a number": (lambda own: own.update(seed=1.5), "'seed' is a number"),
    "next_id a text": (lambda own: own.update(next_id="7"), "'next_id' is a text"),
    "version a text": (lambda own: own.update(format_version="2"), "'format_version' is a text"),
    "episodes an object": (lambda own: own.update(episodes={}), "'episodes' is an object"),
    "an episode a list": (lambda own: own["episodes"].__setitem__(0, []), "other parts"),
    "an episode with more": (lambda own: own["episodes"][0].update(more=1), "other parts"),
    "an episode with less": (lambda own: own["episodes"][0].pop("edited") and None, "other parts"),
    "an id as number": (lambda own: own["episodes"][0].update(id=1), "'id' is a whole number"),
    "a text as null": (lambda own: own["episodes"][0].update(text=None), "'text' is null"),
    "half a surrogate pair": (lambda own: own["episodes"][0].update(text="a\ud800"), "not valid Unicode"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_header_of_another_shape_is_damage(taught, tmp_path, name) -> None:
    change, message = SHAPES[name]
    path = tmp_path / "a.memory"
    taught.save(path)
    _rewrite(path, change)
    found = refusal(taught, path)
    assert "is damaged" in found
    assert re.search(message, found), found


def test_a_header_that_is_deep_or_long_is_damage(taught, tmp_path) -> None:
    path = tmp_path / "a.memory"
    taught.save(path)
    good = path.read_bytes()
    _rewrite(path, lambda own: None, lambda own: "[" * 100_000)
    assert "nested too deeply" in refusal(taught, path)
    path.write_bytes(struct.pack("<Q", 2**63) + good[8:])
    assert "longer than it may be" in refusal(taught, path)
    path.write_bytes(struct.pack("<Q", len(good) - 8) + good[8:])
    assert "no JSON" in refusal(taught, path)
    for short in (b"", good[:7], b"{}", good[:8]):
        path.write_bytes(short)
        assert "is damaged" in refusal(taught, path)


# ---------------------------------------------------------------- what is no file, and what is too large


@pytest.mark.parametrize("kind", irregular_files.KINDS)
def test_what_is_no_regular_file_is_refused_at_once(taught, tmp_path, kind) -> None:
    path = irregular_files.make(kind, tmp_path / "m")
    assert "memory file" in refusal(taught, path) or "cannot be read" in refusal(taught, path)


def test_a_name_that_no_file_has_is_refused(taught, tmp_path) -> None:
    with pytest.raises(ValueError, match="no memory file"):
        taught.load(f"{tmp_path / 'm'}\0")


def test_a_file_that_could_not_be_read_back_is_not_written(taught, tmp_path, monkeypatch) -> None:
    path = tmp_path / "m"
    taught.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("bitgen.memory.files.MOST_HEADER", 100)
    with pytest.raises(ValueError, match="nothing was written"):
        taught.save(path)
    assert path.read_bytes() == before
    monkeypatch.setattr("bitgen.memory.files.MOST_HEADER", 10_000)
    monkeypatch.setattr("bitgen.memory.files.MOST_BYTES", 100)
    assert "more than 100" in refusal(taught, path)


# ---------------------------------------------------------------- readers beside a writer


def read_beside_a_writer(path: Path, seconds: float, readers: int) -> tuple[int, int, list[str]]:
    """Versions written, reads, and what was wrong: in version v every code is v, and every text says v."""

    def write(version: int) -> None:
        texts = [{"id": str(row), "text": f"{version}", "written": "", "edited": None} for row in range(6)]
        settings = {"slots": 4, "widen": False, "sigma": 0.1, "cue_noise": 0.1, "seed": 0, "next_id": 7}
        codes = torch.full((6, 64), float(version), dtype=torch.float64)
        write_memory(path, codes, codes[0].clone(), None, {**settings, "episodes": texts})

    counts, wrong, done = [0] * readers, [], threading.Event()

    def read(number: int) -> None:
        while not done.is_set():
            try:
                codes, probe, _, header = read_memory(path)
                said = {float(episode["text"]) for episode in header["episodes"]}
                if said != {*codes.unique().tolist(), *probe.unique().tolist()}:
                    wrong.append(f"texts of {said} with codes of {codes.unique().tolist()}")
            except ValueError as error:
                wrong.append(str(error))
            counts[number] += 1

    write(0)
    threads = [threading.Thread(target=read, args=(number,)) for number in range(readers)]
    for thread in threads:
        thread.start()
    version, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        write(version := version + 1)
    done.set()
    for thread in threads:
        thread.join()
    return version, sum(counts), wrong


def test_a_reader_sees_one_version_whole_while_a_writer_replaces_it(tmp_path) -> None:
    versions, reads, wrong = read_beside_a_writer(tmp_path / "m", seconds=3, readers=4)
    assert versions > 3 and reads > 20 and not wrong, wrong[:3]


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("part", ["text", "id"])
def test_half_a_character_and_endless_texts_are_refused_when_taught(taught, part) -> None:
    before = contents(taught)
    for bad in ("a\udce9", "a" * 10_001):
        arguments = ([bad], None) if part == "text" else (["fine"], [bad])
        with pytest.raises(ValueError, match="not valid Unicode|characters") as raised:
            taught.write_codes(pairs(1, seed=3), *arguments)
        assert str(raised.value).isprintable() and len(str(raised.value)) < 300
    assert contents(taught) == before


def test_more_episodes_than_a_file_may_hold_are_refused(taught, monkeypatch) -> None:
    monkeypatch.setattr("bitgen.memory.episodes.MOST_EPISODES", 6)
    taught.write_codes(pairs(1, seed=3), ["the sixth"])
    with pytest.raises(ValueError, match="at most 6 episodes"):
        taught.write_codes(pairs(1, seed=4), ["the seventh"])
    assert len(taught) == 6 and taught.recall_codes(pairs(1, seed=3)[:, :16], IMAGE)[0][0].text == "the sixth"
