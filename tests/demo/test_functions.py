"""What stands behind the tabs of the page, without the page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import bitgen
from bitgen.config import ConfigError
from bitgen.demo import about, remembering
from bitgen.demo.abilities import ABILITIES, ASK, DESCRIBE, MATCH, REMEMBER, SEARCH, WHERE, why_not
from bitgen.demo.asking import Reason, ask, where
from bitgen.demo.describing import describe, probabilities
from bitgen.demo.matching import match
from bitgen.demo.scenes import another_picture, held_out_scenes, swapped_example, table
from bitgen.demo.searching import captions_for, folder_index, how_reranked, pictures_for, scenes_index
from bitgen.demo.visitors import PerVisitor
from bitgen.evaluation.word_probabilities import END, word_probabilities
from support.runs import written_run
from support.spoken_memories import finds
from support.tiny_vlms import exported_vlm

# ---- abilities ----


def test_a_model_of_stage1_does_all_but_answer(model: bitgen.Model) -> None:
    missing = why_not(model)
    assert set(missing) == {ASK, WHERE} and "train_stage2_reasoning" in missing[ASK]


def test_a_model_of_stage2_answers_and_says_what_it_never_learned(reasoner: bitgen.Model) -> None:
    missing = why_not(reasoner)
    assert not {ASK, WHERE, DESCRIBE} & set(missing)
    assert "itm_weight was 0" in missing[MATCH]


@pytest.mark.parametrize(
    ("setting", "gone"),
    [("text_loss_weight", {DESCRIBE}), ("itm_weight", {MATCH}), ("contrastive_weight", {SEARCH, REMEMBER})],
)
def test_what_was_not_trained_is_not_offered(setting: str, gone: set[str]) -> None:
    missing = why_not(bitgen.load(written_run(settings={setting: 0.0}), device="cpu"))
    assert set(missing) - {ASK, WHERE} == gone
    assert all(f"{setting} was 0" in missing[name] for name in gone)


def test_a_model_without_eyes_offers_nothing() -> None:
    missing = why_not(bitgen.load(written_run(features=True), device="cpu"))
    assert set(missing) == set(ABILITIES) and all("no vision tower" in why for why in missing.values())


def test_a_model_of_parts_describes_and_answers(tmp_path: Path, photo: str) -> None:
    parts = bitgen.load_vlm(exported_vlm(tmp_path / "parts"), device="cpu")
    assert set(why_not(parts)) == {SEARCH, MATCH, REMEMBER, WHERE}
    assert describe(parts, photo).text == parts.caption(photo) and probabilities(parts, photo, "a dog") == []
    assert ask(parts, photo, "What is it?", False).answer == parts.ask("What is it?", photo)
    with pytest.raises(ValueError, match="question is empty"):
        ask(parts, photo, " ", False)
    assert about.parameters(parts)[-1][0] == "total"


# ---- describe ----


def test_the_words_of_a_caption_have_the_likelihood_of_the_whole(model: bitgen.Model, photo: str) -> None:
    found = describe(model, photo)
    assert found.text == model.caption(photo) and probabilities(model, photo, found.text) and found.seconds > 0
    text = "a red dog, it </s> sat on two hills"  # what spells the end is text
    words = word_probabilities(model.trained, model.pixels(photo), text)
    assert [one.word for one in words] == [*text.split(), END]
    ids, mask = model.encoder.tokens([text])
    tokens = model.encoder.looked_at([photo]).image_tokens
    with torch.no_grad():
        hidden = model.trained.model.run_stack(ids, mask, tokens).hidden_states
        whole = model.trained.model.log_likelihood(hidden, ids, mask).item()
    assert sum(one.log_probability for one in words) == pytest.approx(whole, abs=1e-3)


def test_words_and_not_their_pieces_are_shown(model: bitgen.Model, photo: str) -> None:
    text = "the unheardof dog, sat"
    words = word_probabilities(model.trained, model.pixels(photo), text)
    assert [one.word for one in words] == ["the", "unheardof", "dog,", "sat", END]
    foreign = word_probabilities(model.trained, model.pixels(photo), "the \u00e9l\u00e8ve \u732b")
    assert [one.word for one in foreign] == ["the", "\u00e9l\u00e8ve", "\u732b", END]
    long = word_probabilities(model.trained, model.pixels(photo), "dog " * 60)
    assert len(long) < 60 and {one.word for one in long} == {"dog"}  # as far as the model reads


def test_temperature_draws(model: bitgen.Model, photo: str) -> None:
    assert len({describe(model, photo, temperature=2.0).text for _ in range(4)}) > 1
    assert len({describe(model, photo).text for _ in range(3)}) == 1
    for temperature in (1000, 1e-300):
        with pytest.raises(ValueError, match="it must be 0, or from 0.01 to 100"):
            describe(model, photo, temperature=temperature)
    drawn = {model.caption(photo, temperature=2.0) for _ in range(4)}
    assert len(drawn) > 1, "also where beams are searched by default"


# ---- search ----


@pytest.mark.parametrize("rerank", [False, True])
def test_pictures_are_ranked_as_a_program_ranks_them(model: bitgen.Model, folder: Path, rerank: bool) -> None:
    index = folder_index(model, folder)
    assert index.names == ["0.png", "1.png", "2.png", "3.png", "more/4.png"]
    assert len(index.left_out) == 1 and index.left_out[0].startswith("broken.jpg cannot be read")
    files = [folder / name for name in index.names]
    found = pictures_for(model, index, "a red dog", rerank=rerank)
    by_cosine = model.search("a red dog", files)
    assert {one.row: pytest.approx(one.cosine, abs=1e-5) for one in found} == {
        one.index: one.score for one in by_cosine
    }
    if rerank:
        odds = {row: torch.tensor(model.match(file, "a red dog")).logit().item() for row, file in enumerate(files)}
        assert [one.row for one in found] == sorted(odds, key=lambda row: -odds[row])
        assert [one.reranked for one in found] == pytest.approx(sorted(odds.values(), reverse=True), abs=1e-2)
    else:
        assert [one.row for one in found] == [one.index for one in by_cosine]


@pytest.mark.parametrize("rerank", [False, True])
def test_captions_are_ranked_as_a_program_ranks_them(model: bitgen.Model, photo: str, rerank: bool) -> None:
    captions = ["a red dog", "the cat sat", "two hills", "blue mat"]
    found = captions_for(model, photo, [*captions, " "], rerank=rerank)
    by_cosine = {one.index: one.score for one in model.rank([photo], captions)[0]}
    assert {one.row: pytest.approx(one.cosine, abs=1e-5) for one in found} == by_cosine
    key = (lambda row: -model.match(photo, captions[row])) if rerank else (lambda row: -by_cosine[row])
    assert [one.row for one in found] == sorted(by_cosine, key=key)


def test_scenes_are_there_from_the_start(model: bitgen.Model) -> None:
    index = scenes_index(model, 7)
    assert len(index.names) == len(index.thumbnails) == len(index.captions) == 7
    alone = model.encoder.images([held_out_scenes(7)[4].picture]).float()
    assert torch.allclose(index.features[4], alone[0], atol=1e-5)


def test_what_never_learned_to_match_re_ranks_by_likelihood(reasoner: bitgen.Model, folder: Path) -> None:
    assert "nats" in (how_reranked(reasoner) or "")
    found = pictures_for(reasoner, folder_index(reasoner, folder), "a red star")
    scores = [one.reranked for one in found]
    assert None not in scores and scores == sorted(scores, reverse=True)


# ---- match ----


def test_captions_are_matched_one_by_one(model: bitgen.Model, photo: str) -> None:
    captions = ["a red dog", "the cat sat", "two hills"]
    found = match(model, photo, captions)
    assert sum(one.share for one in found) == pytest.approx(1)
    for one in found:
        assert one.probability == pytest.approx(model.match(photo, one.caption), abs=1e-4)
    odds = torch.tensor([one.probability for one in found]).logit()
    assert torch.allclose(odds.softmax(0), torch.tensor([one.share for one in found]), atol=1e-3)
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)


@pytest.mark.parametrize("number", [0, 5])
def test_swapped_captions_have_the_same_words(number: int) -> None:
    picture, (first, second) = swapped_example(number)
    assert sorted(first.split()) == sorted(second.split()) and first != second and picture.size == (384, 384)


# ---- remember ----


def test_a_memory_is_taught_recalled_edited_and_forgotten(model: bitgen.Model, photo: str, tmp_path: Path) -> None:
    memory = model.memory()
    assert remembering.summary(memory) == "The memory is empty." and remembering.drawn(memory) is None
    key = remembering.teach(memory, photo, "this is Rex")
    (found,) = remembering.recall(memory, photo, "")
    assert (found.id, found.text) == (key, "this is Rex") and found.distance < 0.1
    assert remembering.recall(memory, None, "this is Rex")[0].id == key
    assert remembering.said(model, memory, photo, "") is None
    assert remembering.rows(memory)[0][:2] == [key, "this is Rex"] and "1 of" in remembering.summary(memory)
    assert isinstance(remembering.drawn(memory), Image.Image)
    with pytest.raises(ValueError, match="does not speak"):
        remembering.teach(memory, None, "a sentence")
    with pytest.raises(ValueError, match="give one of them"):
        remembering.recall(memory, None, "  ")


def test_a_model_that_speaks_says_what_it_was_taught(speaker: bitgen.Model, photo: str, monkeypatch) -> None:
    finds(monkeypatch, everything=True)
    memory = speaker.memory()
    key = remembering.teach(memory, photo, "dog and hill")
    said = remembering.said(speaker, memory, photo, "")
    assert said is not None and said.before == speaker.caption(photo)
    assert said.after == speaker.caption(photo, memory=memory) != said.before
    assert [episode.id for episode, _ in said.facts] == [key]
    told = remembering.teach(memory, None, "blue mat")
    answered = remembering.said(speaker, memory, None, "the cat")
    assert answered is not None and told in {episode.id for episode, _ in answered.facts}
    long = remembering.said(speaker, memory, None, "the cat " * 200)  # recalls, though nothing can follow it
    assert long is not None and "nothing can follow" in long.after and long.facts


def test_visitors_have_memories_of_their_own(model: bitgen.Model, photo: str) -> None:
    memories = PerVisitor(model.memory, most=2)
    remembering.teach(memories.kept("one"), photo, "this is Rex")
    assert len(memories.seen("one")) == 1 and len(memories.seen("two")) == 0
    for number in range(9):  # who only looks pushes nobody out
        memories.seen(f"program {number}")
    assert len(memories.seen("one")) == 1
    memories.kept("two")
    memories.seen("one")
    memories.replace("three", model.memory())
    assert len(memories.seen("one")) == 1  # the second was here longest ago
    memories.kept("four")
    memories.kept("five")
    assert len(memories.seen("one")) == 0
    remembering.teach(memories.kept("five"), photo, "this is Rex")
    memories.forget("five")
    memories.forget("nobody")
    assert len(memories.seen("five")) == 0


# ---- ask ----


def test_an_answer_is_the_one_of_the_command_line(reasoner: bitgen.Model, table_photo: str) -> None:
    for think in (True, False):
        found, plain = ask(reasoner, table_photo, "how many stars are there?", think), None
        plain = reasoner.ask("how many stars are there?", table_photo, think)
        assert found.answer == (plain.answer or found.answer)
        assert (found.picture is None) == (not plain.boxes)
        assert [one.holds for one in found.reasons] == [None] * len(found.reasons)
    assert ask(reasoner, table_photo, "where is the star?", False) is not None
    assert {where(reasoner, table_photo, thing).answer for thing in (" the star ", "A star", "star?")} == {
        where(reasoner, table_photo, "star").answer
    }


def test_clauses_are_compared_with_the_scene(reasoner: bitgen.Model, table_photo: str, monkeypatch) -> None:
    from bitgen.data.questions.marked_text import Reply
    from bitgen.data.scenes.rationales import object_text
    from bitgen.demo import asking
    from bitgen.evaluation.asking import readable

    scene = table(3).scene
    right, wrong = object_text(scene, 0), object_text(scene, 1).replace(scene.name(1), scene.name(0))
    reply = Reply(f"find {right}; next left {wrong}; none", "red")
    monkeypatch.setattr(bitgen.Model, "ask", lambda self, question, picture, think: readable(reply))
    found = asking.ask(reasoner, table_photo, "what colour is it?", True, scene)
    assert [one.holds for one in found.reasons] == [True, False, None]
    assert found.reasons[0] == Reason(f"find [1] {scene.name(0)}", True) and found.picture is not None
    assert [one.holds for one in asking.ask(reasoner, table_photo, "what?", True).reasons] == [None] * 3


def test_scenes_to_ask_about_are_those_of_the_command_line() -> None:
    drawn = table(3)
    assert drawn.questions and len(drawn.things) == len(drawn.scene.objects)
    assert table(3).picture.tobytes() == drawn.picture.tobytes() != table(4).picture.tobytes()
    with pytest.raises(ValueError, match="there is no scene -1"):
        table(-1)
    assert another_picture(0, 20).tobytes() != held_out_scenes(20)[0].picture.tobytes()


# ---- about ----


def test_about_counts_the_network(model: bitgen.Model) -> None:
    *parts, (name, total) = about.parameters(model)
    count = sum(parameter.numel() for parameter in model.trained.model.parameters())
    assert name == "total" and total == f"{count:,}" and sum(int(n.replace(",", "")) for _, n in parts) == count
    facts = dict(map(tuple, about.facts(model)))
    assert facts["trained on pictures with captions"] == "scenes" and facts["pictures are seen as"] == "28 x 28 pixels"
    assert about.seconds_a_caption(model) > 0


# ---- bad input ----

CALLS = {
    "describe": lambda model, index, picture: describe(model, picture),
    "captions": lambda model, index, picture: captions_for(model, picture, ["a dog"]),
    "match": lambda model, index, picture: match(model, picture, ["a dog"]),
    "teach": lambda model, index, picture: remembering.teach(model.memory(), picture, "a dog"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_picture_that_cannot_be_read_is_named(model: bitgen.Model, call: str, tmp_path: Path, huge: str) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG no more")
    for path, said in ((broken, "broken.png cannot be read"), (huge, "huge.png"), (tmp_path / "gone.png", "gone.png")):
        with pytest.raises(ValueError, match=said):
            CALLS[call](model, None, str(path))


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_no_captions(model: bitgen.Model, photo: str, captions: list[str]) -> None:
    for call in (match, captions_for):
        with pytest.raises(ValueError, match="write one a line"):
            call(model, photo, captions)
    with pytest.raises(ValueError, match="takes 500: leave some out"):
        match(model, photo, ["dog"] * 501)


def test_folders_that_hold_nothing(model: bitgen.Model, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "one.jpg").write_bytes(b"x")
    for name, said in (("empty", "holds no pictures"), ("bad", "none of its 1 pictures"), ("gone", "no such folder")):
        with pytest.raises(ValueError, match=said):
            folder_index(model, tmp_path / name)
    with pytest.raises(ValueError, match="no such folder"):
        folder_index(model, "")
    with pytest.raises(ValueError, match="is a file. Write the path of the folder"):
        folder_index(model, tmp_path / "bad" / "one.jpg")
    for name in ("x" * 100_000, "a\0b", "\ud800"):
        with pytest.raises(ValueError, match="no such folder"):
            folder_index(model, name)
    for limit in ("MOST_PICTURES", "_MOST_ENTRIES"):
        with monkeypatch.context() as changed, pytest.raises(ValueError, match="more than the page takes"):
            changed.setattr(f"bitgen.demo.searching.{limit}", 0)
            folder_index(model, tmp_path / "bad")


def test_a_folder_as_a_person_writes_it(model: bitgen.Model, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    (folder / "more" / "round").symlink_to(folder)  # a link in a circle
    for written in (f"  {folder}\n", f'"{folder}"', "~/photos"):
        assert len(folder_index(model, written).names) == 5


def test_an_index_keeps_no_picture(model: bitgen.Model, tmp_path: Path) -> None:
    """A folder of photographs must not fill the memory."""
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(tmp_path / "photo.jpg")
    index = folder_index(model, tmp_path)
    assert max(index.thumbnails[0].size) == 240
    assert index.features[0].tolist() == pytest.approx(
        model.encoder.images([tmp_path / "photo.jpg"])[0].tolist(), abs=1e-5
    )


def test_a_model_whose_folder_has_gone_goes_on(stage1_run: Path, photo: str, tmp_path: Path) -> None:
    copy = shutil.copytree(stage1_run, tmp_path / "run", symlinks=True)
    model = bitgen.load(copy, device="cpu")
    before = describe(model, photo).text
    shutil.rmtree(copy)
    assert describe(model, photo).text == before and match(model, photo, ["a dog"])
    memory = model.memory()
    assert remembering.teach(memory, photo, "a dog") and remembering.drawn(memory) is not None
    assert about.facts(model) and about.parameters(model)


def test_texts_that_say_nothing(model: bitgen.Model, reasoner: bitgen.Model, photo: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        pictures_for(model, scenes_index(model, 2), " ")
    with pytest.raises(ValueError, match="empty"):
        remembering.teach(model.memory(), photo, " ")
    with pytest.raises(ValueError, match="empty"):
        ask(reasoner, photo, " ", True)
    with pytest.raises(ValueError, match="nothing to look for"):
        where(reasoner, photo, " ")


def test_what_a_model_never_learned_is_refused(photo: str) -> None:
    mute = bitgen.load(written_run(settings={"text_loss_weight": 0.0}), device="cpu")
    with pytest.raises(ConfigError, match="never learned to write"):
        describe(mute, photo)
