"""What of held-out conversations can be asked, and what ends an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator, start_of_last_answer
from bitgen.data.conversations.records import IMAGE_MARKER, ConversationReader, Turn
from bitgen.data.conversations.speech import Speech
from bitgen.data.conversations.writer import writing_conversations
from bitgen.evaluation import answers
from bitgen.evaluation.answers import Decoding, askable, up_to_the_answer, write_answers
from bitgen.trained_vlm import TrainedVlm
from support.tiny_vlms import language_folder, tiny_vlm, tower_folder
from support.vlm_runs import encoded

WHAT = "What colour?"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> TrainedVlm:
    folder = tmp_path_factory.mktemp("model")
    return tiny_vlm(tower_folder(folder / "tower"), language_folder(folder / "lm"))


def dataset_of(trained: TrainedVlm, folder: Path, max_length: int, *said: Sequence[str]) -> ConversationDataset:
    """Conversations of turns that alternate, each about one picture."""
    with writing_conversations(folder, "a test") as writer:
        row = writer.picture("a.png", encoded("red"))
        for number, texts in enumerate(said):
            roles = ("user", "assistant") * len(texts)
            turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]
            turns[0] = Turn("user", f"{IMAGE_MARKER}\n{texts[0]}")
            writer.add(f"q{number}", [[row]], turns, [])
    tokens = trained.model.connector.tokens
    source = ConversationReader(folder)
    return ConversationDataset(source, trained.speech, tokens, lambda *_: torch.zeros(3, 28, 28), max_length)


def test_what_cannot_be_asked_is_left_out_with_its_name_and_why(trained, tmp_path) -> None:
    good, long = (WHAT, "red"), (WHAT + " Is it? " * 12, "red")
    lost = (WHAT, "red", "Now say it at length. " + "Again. " * 60, "blue")  # its last question is cut off
    nothing = (WHAT + " Is it? " * 60, "red")  # longer than what is read
    dataset = dataset_of(trained, tmp_path / "data", 300, good, long, lost, nothing, (WHAT, "?!"))
    most = len(up_to_the_answer(dataset.text(0))["input_ids"]) + 8
    rows, left_out = askable(dataset, range(5), 8, most)
    assert rows == [0] and len(left_out) == 4
    why = ("of up to 8 are more than the", "last answer begins behind the 300", "no token of an answer", "no word")
    for number, (text, says) in enumerate(zip(left_out, why, strict=True), 1):
        assert f"record {number} (q{number})" in text and says in text
    assert askable(dataset, [0, 1], 8, 10_000) == ([0, 1], [])


def test_the_last_answer_is_found_in_labels() -> None:
    for labels, start in (([-100, 5, 6], 1), ([5, 6, -100, 7, -100], 3), ([-100, -100], 2), ([5], 0)):
        assert start_of_last_answer(torch.tensor(labels)) == start


def test_answers_do_not_depend_on_those_beside_them(trained, tmp_path, monkeypatch) -> None:
    """A truncated sample does not hold the template's end, and is to stop at it all the same."""
    dataset = dataset_of(trained, tmp_path / "data", 130, (WHAT, "red " * 60), (WHAT, "red"))
    samples = [dataset[0], dataset[1]]
    assert [sample["truncated"] for sample in samples] == [True, False]
    asked, generate = [], answers.generate

    def noting(*arguments, **settings):
        asked.append(settings["eos_token_id"])
        return generate(*arguments, **settings)

    monkeypatch.setattr(answers, "generate", noting)
    collate = VisualCollator(trained.tokenizer.pad_token_id)
    said = [
        write_answers(trained.model, trained.speech, samples, collate, Decoding(max_new_tokens=8), size)
        for size in (1, 2)
    ]
    assert said[0] == said[1] and asked == [trained.speech.ends] * 3 and len(trained.speech.ends) == 2


def test_an_answer_ends_before_the_token_that_ends_it_though_that_is_not_special(
    trained, tmp_path, monkeypatch
) -> None:
    """An added token that a tokenizer does not call special is decoded as text."""
    dataset = dataset_of(trained, tmp_path / "data", 130, (WHAT, "red"))
    words = trained.tokenizer("red dog", add_special_tokens=False).input_ids
    special = {*trained.tokenizer.all_special_ids, *words}
    plain = next(id for id in range(len(trained.tokenizer)) if id not in special and trained.tokenizer.decode([id]))
    speech = SimpleNamespace(tokenizer=trained.tokenizer, ends=[plain])
    written = torch.tensor([[*words, plain, plain]])
    monkeypatch.setattr(answers, "generate", lambda *arguments, **settings: written)
    collate = VisualCollator(trained.tokenizer.pad_token_id)
    said = write_answers(trained.model, speech, [dataset[0]], collate, Decoding(max_new_tokens=8), 1)
    assert said == [trained.tokenizer.decode(words)]


def test_what_ends_an_answer_is_found_out_once(trained, tmp_path, monkeypatch) -> None:
    """It renders a conversation, which would take minutes where it was asked for each token."""
    dataset = dataset_of(trained, tmp_path / "data", 130, (WHAT, "red"), (WHAT, "blue"))
    asked, ends = [], trained.speech.ends
    monkeypatch.setattr(Speech, "ends", property(lambda speech: asked.append(speech) or ends))
    collate = VisualCollator(trained.tokenizer.pad_token_id)
    write_answers(trained.model, trained.speech, [dataset[0], dataset[1]], collate, Decoding(max_new_tokens=8), 1)
    assert len(asked) == 1
