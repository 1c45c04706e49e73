"""What a memory that speaks warns of: sentences that contradict each other, edits about something else; its limits."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from bitgen.commands import memory as memory_command
from bitgen.machine.files import check_writable, write_whole
from bitgen.memory import EpisodicMemory, training_whitening, whitening
from bitgen.memory.address_space import IMAGE, TEXT
from bitgen.memory.associative import AssociativeMemory
from bitgen.memory.spoken import FactEncoder
from bitgen.model.picture import Picture
from bitgen.model.speaking import BY_PICTURE, BY_TEXT, find
from bitgen.model.spoken_memory import SpokenMemory
from support.data import picture
from support.memories import pairs
from support.spoken_memories import CODE, KEY, TEXTS, TOKENS, speaking_model, speaking_run, warnings


@pytest.fixture
def speaker() -> EpisodicMemory:
    return EpisodicMemory(*speaking_model())


def turned(cosine: float) -> torch.Tensor:
    """Two keys ``[2, k]`` with that cosine."""
    first, second = torch.eye(KEY)[:2]
    return torch.stack([first, cosine * first + (1 - cosine**2) ** 0.5 * second])


@pytest.mark.parametrize(
    ("texts", "cosine", "warned"),
    [
        (("Otto owns Blick", "Blick is owned by Mia"), 0.8, True),
        (("Otto owns Blick", "Mia owns Blick"), 0.8, True),  # but for one word the same
        (("Otto owns Blick", "Blick is owned by Mia"), 0.6, False),  # it is asked for otherwise
        (("Otto owns Blick", "Rex is owned by Mia"), 0.8, False),  # of somebody else
        (("Otto owns Blick", "Otto owns Blick"), 0.8, False),  # the same
        (("The ring is red", "The star is Rex"), 0.8, False),  # The is nobody's name
    ],
)
def test_an_earlier_sentence_that_may_be_contradicted_is_named(speaker, caplog, texts, cosine, warned) -> None:
    told = pairs(2)
    told[:, : told.shape[1] // 2] = 0  # no pictures
    spoken = torch.cat([turned(cosine), torch.randn(2, TOKENS * CODE)], dim=1)
    with caplog.at_level(logging.WARNING):
        for row in range(2):
            speaker.write_codes(told[row : row + 1], texts[row : row + 1], spoken=spoken[row : row + 1])
    found = warnings(caplog, "is told beside")
    assert len(found) == warned
    assert not warned or f"'{texts[1]}' is told beside '{texts[0]}' (episode 1)" in found[0] and "orget " in found[0]
    assert not warned or ("answered with episode 2, the last" in found[0]) == (texts[1] == "Mia owns Blick")


def test_an_edit_of_an_earlier_sentence_says_that_a_later_one_is_what_is_said(speaker, caplog, monkeypatch) -> None:
    told = pairs(2)
    told[:, : told.shape[1] // 2] = 0  # no pictures
    near, values = turned(0.8), torch.randn(2, TOKENS * CODE)
    speaker.write_codes(
        told, ["Blick belongs to Anna", "Blick belongs to Otto"], spoken=torch.cat([near, values], dim=1)
    )
    code = torch.cat([near[0], values[0]]).double()
    monkeypatch.setattr(FactEncoder, "codes", lambda self, texts: code[None])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        speaker.edit("1", "Blick belongs to Mia")
    [line] = warnings(caplog, "is told beside")
    assert "'Blick belongs to Mia' is told beside 'Blick belongs to Otto' (episode 2)" in line
    assert line.endswith("may be answered with episode 2, the last that was taught. Forget the one that is not true.")


def test_an_edit_that_contradicts_an_earlier_or_later_sentence_names_it(speaker, caplog, monkeypatch) -> None:
    texts = ["Otto owns Blick", "Blick is owned by Mia", "Rex lives in Oslo"]
    told = pairs(3)
    told[:, : told.shape[1] // 2] = 0  # no pictures
    near, third = turned(0.8), torch.eye(KEY)[2:3]
    values = torch.randn(3, TOKENS * CODE)
    speaker.write_codes(told, texts, spoken=torch.cat([torch.cat([near[:1], third, third * -1]), values], dim=1))
    for edited, other in (("2", "1"), ("3", "1"), ("1", "3")):
        code = torch.cat([near[1 if edited != "1" else 0], values[0]]).double()
        monkeypatch.setattr(FactEncoder, "codes", lambda self, texts, code=code: code[None])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            speaker.edit(edited, f"Blick belongs to Anna{edited}")
        [line] = warnings(caplog, "is told beside")
        assert f"'Blick belongs to Anna{edited}' is told beside" in line and f"(episode {other})" in line
        assert other != "3" or "1 more such pairs" in line  # of the second, too


@pytest.mark.parametrize("pictured", [True, False])
def test_an_edit_that_stays_behind_a_later_one_names_that(speaker, caplog, monkeypatch, pictured) -> None:
    for text in TEXTS[:2] * 2:
        if pictured:
            speaker.write([picture(TEXTS.index(text))], [text])
        else:
            speaker.tell([text])
    with caplog.at_level(logging.WARNING):
        speaker.edit("4", TEXTS[1])
        assert not warnings(caplog, "was taught after")
        speaker.edit("2", TEXTS[1])
        assert not warnings(caplog, "was taught after")  # the later one says the same
        speaker.edit("4", TEXTS[2])
        if not pictured:  # a sentence of another text has another key
            speaker.edit("4", TEXTS[1])
            monkeypatch.setattr(FactEncoder, "codes", lambda self, texts: speaker.spoken.pairs[3:])
        speaker.edit("2", TEXTS[3])
    [line] = warnings(caplog, "was taught after")
    said = TEXTS[2 if pictured else 1]
    assert f"episode 4 ('{said}') was taught after episode 2" in line and "Edit that one instead" in line
    assert not warnings(caplog, "is told beside")


def test_what_is_taught_of_the_same_thing_is_named_at_once(speaker, caplog) -> None:
    def wrote(number: int, text: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            speaker.write([picture(number)], [text])
        return warnings(caplog, "from now on")

    assert wrote(0, TEXTS[0]) == []
    [line] = wrote(0, TEXTS[0])  # twice
    assert f"episode 2 ('{TEXTS[0]}') is about the same thing as episode 1 ('{TEXTS[0]}')" in line
    told = pairs(3)
    told[:2, : told.shape[1] // 2] = 0  # two sentences and a picture, whose keys are alike
    values = torch.randn(3, TOKENS * CODE)
    keys = torch.cat([turned(0.99), torch.eye(KEY)[:1]])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        speaker.write_codes(told, ["a", "b", "c"], spoken=torch.cat([keys, values], dim=1))
    [line] = warnings(caplog, "from now on")
    assert "episode 4 ('b') is about the same thing as episode 3 ('a')" in line and "more" not in line


def test_what_was_taught_again_does_not_count_as_unreadable(speaker) -> None:
    told = pairs(4)
    keys = F.normalize(torch.randn(4, KEY), dim=1)
    keys[2] = keys[0]
    values = speaker.encoder.model.recall.codes()[torch.arange(4 * TOKENS).view(4, TOKENS) + 5].flatten(1).detach()
    speaker.write_codes(told, ["a", "b", "c", "d"], spoken=torch.cat([keys, values], dim=1))
    assert speaker.state().expected_speech == 1.0
    mixed = speaker.spoken.read(speaker.spoken.halves(IMAGE)[:1], IMAGE).halves
    assert not torch.equal(speaker.encoder.model.recall.tokens_of(mixed.float()),
                           speaker.encoder.model.recall.tokens_of(values[:1]))  # fmt: skip


def test_a_picture_with_nan_recalls_nothing(speaker) -> None:
    speaker.write([picture(0)], TEXTS[:1])
    [pixels] = speaker.encoder.inputs([picture(0)]).values()
    pixels[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in it"):
        speaker.recalled(image=pixels[0])
    recall, keys, values = speaker.encoder.model.recall, torch.eye(KEY)[:2], torch.zeros(2, TOKENS * CODE)
    for meaning in (BY_PICTURE, BY_TEXT):
        nowhere = Picture(torch.full((1, 1, KEY), torch.nan), torch.full((1, 1), torch.nan))
        assert not find(recall, keys, values, nowhere, meaning).confidence.any()


@pytest.mark.parametrize(("alike", "pictured", "warned"), [(0.2, True, 1), (0.9, True, 0), (0.2, False, 0)])
def test_an_edit_about_something_else_in_a_picture_is_named(
    speaker, caplog, monkeypatch, alike, pictured, warned
) -> None:
    if pictured:
        speaker.write([picture(0)], TEXTS[:1])
    else:
        speaker.tell(TEXTS[:1])
    monkeypatch.setattr(FactEncoder, "alike", lambda self, text, other: alike)
    with caplog.at_level(logging.WARNING):
        speaker.edit("1", TEXTS[1])
    found = warnings(caplog, "something else in the picture")
    assert len(found) == warned and all("forget episode 1 and teach the picture anew" in line for line in found)
    assert speaker.episodes[0].text == TEXTS[1]


def test_how_alike_two_texts_look_at_a_picture(speaker) -> None:
    recall, facts = speaker.encoder.model.recall, FactEncoder(speaker.encoder)
    with torch.no_grad():
        asked = [recall.looked_for(*speaker.encoder.tokens([text])) for text in TEXTS[:2]]
    assert facts.alike(TEXTS[0], TEXTS[1]) == pytest.approx(F.cosine_similarity(*asked).item(), abs=1e-5)
    assert facts.alike(TEXTS[0], TEXTS[0]) == pytest.approx(1.0, abs=1e-6)


def test_of_two_facts_about_one_thing_the_later_is_found_if_it_is_recalled_too(speaker) -> None:
    recall = speaker.encoder.model.recall
    with torch.no_grad():
        recall.threshold.fill_(0.5)
        recall.log_scale.fill_(3.0)
    keys, third = turned(0.9), torch.eye(KEY)[2:3]
    keys = torch.cat([keys, third])
    cues = torch.stack([keys[0], third[0], F.normalize(keys[0] - 2 * keys[1], dim=0)])[:, None]
    seen, values = Picture(cues, torch.zeros(3, 1)), torch.zeros(3, TOKENS * CODE)
    found = find(recall, keys, values, seen).confidence
    alone = (recall.logits((cues @ keys.mT)[:, 0]) - math.log(3 / BY_PICTURE.facts)).sigmoid()
    assert found[0, 0] == 0 and found[0, 1] == alone[0, 1] > BY_PICTURE.sure  # both are recalled: the later
    assert torch.equal(found[1:], alone[1:])  # where it is not, nothing is taken back
    apart = BY_PICTURE._replace(same=0.95)  # they are of two things
    assert torch.equal(find(recall, keys, values, seen, apart).confidence, alone)
    torch.testing.assert_close(find(recall, keys.double(), values.double(), seen).confidence, found)  # in any precision


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_keys_on_the_cpu_are_found_by_cues_on_a_gpu(speaker) -> None:
    keys, values, cues = turned(0.9), torch.zeros(2, TOKENS * CODE), Picture(turned(0.9)[:, None], torch.zeros(2, 1))
    recall = speaker.encoder.model.recall.cuda()
    found = find(recall, keys, values, Picture(*(part.cuda() for part in cues))).confidence
    torch.testing.assert_close(found.cpu(), find(recall.cpu(), keys, values, cues).confidence, atol=1e-4, rtol=0)


def test_what_is_read_beyond_capacity_is_judged_by_its_tokens(speaker) -> None:
    seconds = ("sat", "red", "blue", "two", "runs", "over")
    texts = [f"{first} {second}" for first in ("cat", "dog", "hill", "mat") for second in seconds]
    speaker.tell(texts)
    recall, spoken = speaker.encoder.model.recall, speaker.spoken
    keys = spoken.halves(IMAGE)
    # Those that a later text has almost the key of are not read, and would be mixed into what is.
    counted = [row for row in range(24) if not (keys[row + 1 :] @ keys[row] > BY_TEXT.same).any()]
    held = AssociativeMemory.holding(spoken.space, spoken.pairs[counted], spoken.cue_noise)
    codes, right = recall.codes(), 0
    for row, value in zip(counted, held.read(keys[counted], IMAGE).halves.float(), strict=True):
        ids = speaker.encoder.processor.encode([texts[row]])[0][1:][:TOKENS]
        parts = value.view(TOKENS, CODE)
        said = [int((codes @ part).argmax()) for part in parts if part.square().sum() > 0.25]
        right += said == ids
    assert speaker.state().expected_speech == pytest.approx(right / len(counted)) and right < len(counted)
    assert torch.equal(recall.tokens_of(spoken.halves(TEXT).float())[:, 0] >= 0, torch.ones(24, dtype=torch.bool))


def test_a_run_without_pairs_to_compare_cannot_whiten(monkeypatch) -> None:
    monkeypatch.setattr(whitening, "read_checkpoint", lambda path: SimpleNamespace(state={"objective": {}}))
    with pytest.raises(ValueError, match=r"without pairs to compare .*training_whitening"):
        training_whitening(speaking_run())


def test_a_widened_memory_stays_so_and_a_link_stays_a_link(tmp_path, capsys) -> None:
    file, link = tmp_path / "real.memory", tmp_path / "link.memory"
    link.symlink_to(file)

    def call(*arguments: str) -> list[str]:
        memory_command.main(["--model", str(speaking_run()), "--memory", str(link), *arguments])
        return capsys.readouterr().out.splitlines()

    call("--slots", "40", "--widen", "teach", "--text", TEXTS[0])
    call("--slots", "50", "teach", "--text", TEXTS[1])
    assert link.is_symlink() and file.is_file() and not file.is_symlink()
    memory = EpisodicMemory(*speaking_model())
    memory.load(file)
    assert memory.codes.space.widen and memory.codes.space.slots == 50 and len(memory) == 2
    with memory.editing(file), pytest.raises(ValueError, match="try again"):
        EpisodicMemory(*speaking_model()).save(link)  # one file under two names


def test_a_text_too_long_to_be_answered_still_recalls(tmp_path, capsys) -> None:
    place = ["--model", str(speaking_run()), "--memory", str(tmp_path / "a.memory")]
    photo = tmp_path / "photo.png"
    picture(0).save(photo)
    memory_command.main([*place, "teach", str(photo), TEXTS[0]])
    capsys.readouterr()
    memory_command.main([*place, "recall", "--text", "the cat sat on the mat and " * 20])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(TEXTS[0]) and "distance\tid\ttext" in lines


def test_every_way_to_write_keeps_a_link_and_finds_out_beforehand(tmp_path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"
    SpokenMemory(speaking_model()[0]).save(tmp_path / "link")  # of exports
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() != b"new"
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "astray").symlink_to(tmp_path / "file" / "memory")  # its folder is a file
    with pytest.raises(ValueError, match="cannot write there"):
        check_writable(str(tmp_path / "astray"))
