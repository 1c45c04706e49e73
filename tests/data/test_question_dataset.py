"""Pictures with questions as batches: a label is the token after, what is too long is counted, a key is a sample."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from bitgen.data.bad_records import BadRecord
from bitgen.data.questions.boxes import box_text, read_boxes
from bitgen.data.questions.dataset import TOO_LONG, QuestionCollator, QuestionDataset
from bitgen.data.questions.extended_tokenizer import extended_tokenizer
from bitgen.data.questions.marked_text import MARKS, NONE, Asked, MarkedTokens
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.compositions import is_held_out_question
from bitgen.data.scenes.descriptions import COLOURS, SHAPES, is_held_out_pair
from bitgen.data.scenes.questions import FAMILIES
from bitgen.data.scenes.rationales import clauses_that_hold
from bitgen.data.scenes.reasoning import CAPTION, DESCRIBE, WHAT_AT, WHERE, Picture, SceneReasoning
from bitgen.model.likelihood import IGNORED
from bitgen.model.processing_bitgen import BitGenProcessor
from support.tokenizers import tiny_tokenizer, wordpiece_tokenizer

COLOUR_AND_SHAPE = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
WHY = "find <b3><b8><b7><b12> small red star"
SHORT, LONG = Asked("is it?", "yes"), Asked("is it " + "red " * 60 + "?", "yes")
WITH_WHY = Asked("what is it?", "blue", WHY)


@pytest.fixture(scope="module")
def tokens() -> MarkedTokens:
    return MarkedTokens(extended_tokenizer(tiny_tokenizer(), MARKS, ["the small red blue star"] * 30, 420))


@dataclass
class Given:
    """Pictures that all have one value, their index, and what is asked of them."""

    asked: list[tuple[Asked, ...]]
    seen: list[SampleKey] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, key: SampleKey) -> Picture:
        self.seen.append(key)
        return Picture(torch.full((3, 4, 4), float(key.index)), self.asked[key.index])

    def name(self, index: int) -> str:
        return f"picture {index}"


def dataset(tokens: MarkedTokens, *asked: tuple[Asked, ...], length: int = 64, dots: bool = False) -> QuestionDataset:
    return QuestionDataset(Given(list(asked)), tokens, length, answer_weight=2, dots=dots, seed=3)


def batch_of(data: QuestionDataset, tokens: MarkedTokens, *keys: int) -> dict:
    return QuestionCollator(tokens.tokenizer.pad_token_id)([data[SampleKey(key)] for key in keys])


# ---- a batch ----


@pytest.mark.parametrize("dots", [False, True])
def test_a_label_is_the_token_after_and_a_weight_its_own(tokens, dots: bool) -> None:
    caption = Asked("", "a red star")
    data = dataset(tokens, (SHORT, WITH_WHY), (caption,), (WITH_WHY, SHORT, caption), dots=dots)
    batch = batch_of(data, tokens, 0, 2, 1)
    assert batch["picture_of"].tolist() == [0, 0, 1, 1, 1, 2] and batch["indices"].tolist() == [0, 2, 1]
    assert batch["pictures"].shape == (3, 3, 4, 4) and batch["pictures"][:, 0, 0, 0].tolist() == [0, 2, 1]
    asked = [SHORT, WITH_WHY, WITH_WHY, SHORT, caption, caption]
    longest = max(len(tokens.sequence(one).ids) for one in asked)
    for name in ("input_ids", "attention_mask", "labels", "weights"):
        assert batch[name].shape == (6, longest) and batch[name].dtype == torch.int64, name
    total = 0
    for row, one in enumerate(asked):
        sequence = tokens.sequence(one, 2, dots)
        ids, mask, labels, weights = (
            batch[name][row].tolist() for name in ("input_ids", "attention_mask", "labels", "weights")
        )
        length = len(sequence.ids)
        assert ids == sequence.ids + [tokens.tokenizer.pad_token_id] * (longest - length)
        assert mask == [1] * length + [0] * (longest - length)
        for at in range(longest):
            weight = sequence.weights[at + 1] if at + 1 < length else 0
            assert weights[at] == weight
            assert labels[at] == (sequence.ids[at + 1] if weight else IGNORED)
        total += sum(sequence.weights)
    assert batch["supervised"] == total and "skipped" not in batch
    assert torch.equal(batch["weights"] == 0, batch["labels"] == IGNORED)


def test_questions_are_given_and_answers_learned(tokens) -> None:
    batch = batch_of(dataset(tokens, (SHORT,), (WITH_WHY,)), tokens, 0, 1)
    said = [tokens.tokenizer.decode(row[row != IGNORED].tolist()) for row in batch["labels"]]
    assert [text.replace(" ", "") for text in said] == ["yes</s>", f"{WHY}<answer>blue</s>".replace(" ", "")]


# ---- what is too long ----


def test_a_rationale_that_does_not_fit_is_left_out(tokens) -> None:
    whole, bare = (tokens.sequence(one, 2) for one in (WITH_WHY, WITH_WHY._replace(rationale=None)))
    for length, expected in ((len(whole.ids), whole), (len(whole.ids) - 1, bare), (len(bare.ids), bare)):
        (found,) = dataset(tokens, (WITH_WHY,), length=length)[0]["sequences"]
        assert found == expected
        (found,) = dataset(tokens, (WITH_WHY,), length=length, dots=True)[0]["sequences"]
        assert len(found.ids) == len(expected.ids)
    sample = dataset(tokens, (WITH_WHY, SHORT), length=len(tokens.sequence(SHORT).ids))[0]
    assert sample["sequences"] == [tokens.sequence(SHORT, 2)] and "skipped" not in sample


def test_a_picture_of_which_nothing_fits_is_replaced_and_counted(tokens) -> None:
    data = dataset(tokens, (LONG,), (LONG, LONG._replace(rationale=WHY)), (SHORT, LONG), (WITH_WHY,))
    sample = data[SampleKey(0, 5)]
    assert sample["index"] == 0 and sample["pixels"][0, 0, 0] == 2
    assert sample["sequences"] == [tokens.sequence(SHORT, 2)]
    assert sample["skipped"].reason == TOO_LONG and "picture 0" in sample["skipped"].message
    assert data.pictures.seen == [SampleKey(0, 5), SampleKey(1, 5), SampleKey(2, 5)]
    batch = batch_of(data, tokens, 0, 3, 1)
    assert [skipped.message.split(":")[0] for skipped in batch["skipped"]] == ["picture 0", "picture 1"]
    assert batch["indices"].tolist() == [0, 3, 1] and batch["pictures"][:, 0, 0, 0].tolist() == [2, 3, 2]


def test_the_last_is_replaced_by_the_first(tokens) -> None:
    sample = dataset(tokens, (SHORT,), (LONG,))[1]
    assert sample["index"] == 1 and sample["pixels"][0, 0, 0] == 0 and "skipped" in sample


def test_where_nothing_fits_at_all_it_says_so(tokens) -> None:
    with pytest.raises(BadRecord, match="picture 1: no question and answer of it fits 64 tokens"):
        dataset(tokens, (LONG,), (LONG,))[1]


def test_what_does_not_fit_is_said_before_the_first_step(tokens, caplog: pytest.LogCaptureFixture) -> None:
    fits = len(tokens.sequence(WITH_WHY, 2).ids) - 1
    dataset(tokens, (SHORT, WITH_WHY), (LONG, SHORT), (LONG, LONG), length=fits).check_what_is_asked()
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"1 of 6 questions are longer than {fits} tokens (max_seq_len), and are answered without their rationale: "
        "those of picture 0",
        f"3 of 6 questions are longer than {fits} tokens (max_seq_len), and are left out: those of picture 1, "
        "picture 2",
    ]
    caplog.clear()
    dataset(tokens, (SHORT, WITH_WHY), length=fits + 1).check_what_is_asked()
    assert not caplog.records


def test_answers_that_no_token_spells_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """A tokenizer of words writes what it does not know as its unknown token, which says nothing."""
    words = MarkedTokens(extended_tokenizer(wordpiece_tokenizer(), MARKS, [], 200))
    known, unknown = Asked("is it?", "dog"), Asked("is it?", "\u65e5")
    dataset(words, (known, known)).check_what_is_asked()
    assert not caplog.records
    dataset(words, (known, unknown), (known,)).check_what_is_asked(says=False)
    assert not caplog.records
    dataset(words, (known, unknown), (known,)).check_what_is_asked()
    assert "1 of 3 answers have words that the tokenizer has no tokens for" in caplog.text
    with pytest.raises(ValueError, match="2 of 2 answers have words"):
        dataset(words, (unknown,), (unknown,)).check_what_is_asked(says=False)


# ---- scenes ----


@pytest.fixture(scope="module")
def scenes(tokens) -> SceneReasoning:
    return SceneReasoning(BitGenProcessor(tokens.tokenizer, 28, 128), seed=3, size=400, per_picture=3)


@pytest.fixture(scope="module")
def pictures(scenes) -> list[Picture]:
    return [scenes[SampleKey(index, epoch)] for index in range(200) for epoch in range(2)]


def test_a_key_is_a_sample(scenes, tokens) -> None:
    one, other = (QuestionDataset(scenes, tokens, 128, 2, False, 3) for _ in range(2))
    keys = [SampleKey(index, epoch) for index in (0, 7, 31) for epoch in (0, 1, 9)]
    found = [one[key] for key in keys]
    for key, first in zip(reversed(keys), reversed(found), strict=True):
        second = other[key]
        assert torch.equal(first["pixels"], second["pixels"]) and first["sequences"] == second["sequences"]
    assert len({sample["pixels"].numpy().tobytes() for sample in found}) == len(keys), "each epoch shows others"
    assert all(sample["pixels"].shape == (3, 28, 28) for sample in found)


def test_shares_are_those_asked_for(scenes, pictures) -> None:
    captions = [picture for picture in pictures if picture.scene is None]
    assert 0.04 < len(captions) / len(pictures) < 0.17
    asked = Counter(one.family for picture in pictures if picture.scene for one in picture.asked)
    places = sum(asked[family] for family in (WHERE, WHAT_AT, DESCRIBE))
    assert 0.2 < places / asked.total() < 0.35 and set(asked) == {WHERE, WHAT_AT, DESCRIBE, *FAMILIES}
    thought = [one.rationale is not None for picture in pictures for one in picture.asked if one.family in FAMILIES]
    assert 0.43 < sum(thought) / len(thought) < 0.57
    assert all(len(picture.asked) == 3 for picture in pictures)


def test_questions_of_scenes_have_what_their_programs_give(pictures) -> None:
    for picture in pictures:
        for asked, question in zip(picture.asked, picture.questions or [None] * 3, strict=True):
            assert (question is None) == (asked.family in (CAPTION, WHERE, WHAT_AT, DESCRIBE))
            if question is not None:
                assert asked[:2] == (question.text, question.answer) and asked.hops == question.hops <= 3
                assert not is_held_out_question(question.family, question.program)
                if asked.rationale is not None:
                    held, of = clauses_that_hold(picture.scene, question.steps, asked.rationale)
                    assert held == of > 0


def test_no_question_names_a_pair_that_no_picture_shows(pictures) -> None:
    """Its name would always mean "none", which is wrong where the pair is tested."""
    named = 0
    for picture in pictures:
        for asked in picture.asked if picture.scene is not None else ():
            for colour, shape in COLOUR_AND_SHAPE.findall(asked.question):
                named += 1
                assert not is_held_out_pair(colour, shape), asked
    assert named > 200


def test_places_are_where_things_are(pictures) -> None:
    """By the words alone: what is asked for fits the object of that box and no other, or nothing."""
    seen: Counter[str] = Counter()
    for picture in pictures:
        for asked in picture.asked:
            if asked.family not in (WHERE, WHAT_AT, DESCRIBE):
                continue
            scene = picture.scene
            boxes = {box_text(scene.box(index)): scene.name(index).split() for index in range(len(scene.objects))}
            if asked.family == WHERE:
                words = asked.question.removesuffix("?").split(" the ")[-1].split()
                fitting = [marks for marks, name in boxes.items() if set(words) <= set(name)]
                assert fitting == ([] if asked.answer == NONE else [asked.answer]), asked
                seen["absent"] += asked.answer == NONE
                assert words[-2:-1] in ([], ["small"], ["large"]) or not is_held_out_pair(*words[-2:]), asked
            elif asked.family == WHAT_AT:
                (marks,) = [marks for marks in boxes if marks in asked.question]
                assert asked.answer.split() == boxes[marks]
            else:
                said = [part.split(maxsplit=1) for part in asked.answer.split("; ")]
                assert {marks: name.split() for marks, name in said} == boxes
                lefts = [read_boxes(marks)[0].centre[0] for marks, _ in said]
                assert all(one <= other + 1 / 32 for one, other in zip(lefts, lefts[1:], strict=False))
            seen[asked.family] += 1
    assert min(seen.values()) > 10, seen


def test_texts_for_a_tokenizer_are_those_of_its_pictures(scenes) -> None:
    texts = scenes.texts(30)
    pictures = [scenes[SampleKey(index)] for index in range(30)]
    expected = [
        f"{one.question} {one.rationale or ''} {one.answer}"
        for picture in pictures
        if picture.scene
        for one in picture.asked
    ]
    assert texts == expected


# ---- batches of ranks ----


def test_two_ranks_share_an_epoch(scenes, tokens) -> None:
    data = QuestionDataset(scenes, tokens, 128, 2, False, 3)
    ranks = [[key for keys in data.batch_sampler(16, rank, 2).epoch(1) for key in keys] for rank in (0, 1)]
    assert not set(ranks[0]) & set(ranks[1]) and len(ranks[0]) == len(ranks[1]) == 12 * 16
    assert all(key.epoch == 1 for keys in ranks for key in keys)
    alone = [key for keys in data.batch_sampler(32).epoch(1) for key in keys]
    assert set(alone) == {*ranks[0], *ranks[1]}
    order = random.Random(1).sample(ranks[0], 4)
    shown = {data[key]["pixels"].numpy().tobytes() for key in (*order, *ranks[1][:4])}
    assert len(shown) == 8
