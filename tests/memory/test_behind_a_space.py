"""What is taught is encoded behind a space where the model's configuration says so, at every door."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch

from bitgen.data.episodes.dataset import Episode, EpisodeDataset, EpisodeMaker, Query
from bitgen.guards.texts import MOST_CHARACTERS
from bitgen.memory import EpisodicMemory
from bitgen.memory.spoken import FactEncoder
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.model.spoken_memory import SpokenMemory
from bitgen.objectives.recall import RecallObjective
from support.data import picture
from support.spoken_memories import TEXTS, TOKENS, speaking_model

SEEN, TOLD = TEXTS[:2]


def in_a_file(model: BitGenModel, processor: BitGenProcessor) -> torch.Tensor:
    memory = EpisodicMemory(model, processor)
    memory.write([picture(0)], [SEEN])
    memory.tell([TOLD])
    assert memory.spoken is not None and [episode.text for episode in memory.episodes] == [SEEN, TOLD]
    return memory.spoken.pairs.float()


def in_an_export(model: BitGenModel, processor: BitGenProcessor) -> torch.Tensor:
    memory = SpokenMemory(model)
    memory.teach(SEEN, processor.tokenizer, processor.images([picture(0)]))
    memory.teach(TOLD, processor.tokenizer)
    assert memory.texts == (SEEN, TOLD)
    return torch.cat([memory._facts.keys, memory._facts.values], dim=1)


class OneEpisode:
    """Makes the pictures of an episode."""

    def __init__(self, processor: BitGenProcessor) -> None:
        self.processor = processor

    def tensor(self, number: int) -> torch.Tensor:
        return self.processor.images([picture(number)])[0]


def in_training(model: BitGenModel, processor: BitGenProcessor) -> torch.Tensor:
    data = EpisodeDataset(cast(EpisodeMaker, OneEpisode(processor)), processor, 1, 0, model.config.as_taught)
    queries = Query("taught", "", SEEN, (0,), 0), Query("sentence", "who sat?", "the cat", (1,))
    with torch.no_grad():
        tensors = data.tensors(Episode(((SEEN, 0), (TOLD, None)), queries, (0,)))
        return torch.cat(RecallObjective(model).eval().write(tensors), dim=1)


DOORS = [in_a_file, in_an_export, in_training]


def expected(model: BitGenModel, processor: BitGenProcessor, before: str) -> torch.Tensor:
    """Keys and values of the two texts, of tokens that are given as they are."""
    recall = model.eval().recall
    assert recall is not None
    rows = []
    with torch.no_grad():
        tokens = model.pool_image_tokens(model.encode_image(processor.images([picture(0)])).image_tokens)
        for text in (SEEN, TOLD):
            ids = torch.tensor(processor.encode([before + text]))
            mask = torch.ones_like(ids)
            key = recall.taught_image_key(tokens, ids, mask) if text == SEEN else recall.text_keys(ids, mask)
            rows.append(torch.cat([key, recall.values(ids, mask)], dim=1))
    return torch.cat(rows)


@pytest.mark.parametrize("behind", [True, False], ids=["behind a space", "as it is"])
@pytest.mark.parametrize("door", DOORS)
def test_every_door_teaches_the_same_tokens(
    door: Callable[[BitGenModel, BitGenProcessor], torch.Tensor], behind: bool
) -> None:
    model, processor = speaking_model()
    model.config.recall_behind_space = behind
    found = door(model, processor)
    torch.testing.assert_close(found, expected(model, processor, " " * behind), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, expected(model, processor, " " * (not behind)), atol=1e-2)


def test_what_is_seen_of_a_text_has_no_space_before_it(caplog) -> None:
    model, processor = speaking_model()
    model.config.recall_behind_space = True
    facts = FactEncoder(EpisodicMemory(model, processor).encoder)
    long = "the cat sat on it for a red dog and two hill runs"
    facts.say_cut([long])
    (record,) = caplog.records
    ids = processor.encode([f" {long}"], 99)[0][1:-1]
    assert f"has {len(ids)} tokens" in record.getMessage()
    assert f"would recall '{processor.tokenizer.decode(ids[:TOKENS])[1:]}'" in record.getMessage()
    assert facts.alike(SEEN, SEEN) == pytest.approx(1, abs=1e-5)


def test_a_text_is_as_long_as_ever_and_an_empty_one_stays_empty() -> None:
    model, processor = speaking_model()
    model.config.recall_behind_space = True
    facts = FactEncoder(EpisodicMemory(model, processor).encoder)
    assert len(facts.codes(["a" * MOST_CHARACTERS])) == 1
    for bad, message in (("", "is empty"), (5, "is a int, not a string"), ("a" * (MOST_CHARACTERS + 1), "at most")):
        with pytest.raises(ValueError, match=message):
            facts.codes([cast(str, bad)])
