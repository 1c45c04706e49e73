"""Where something was recalled an answer has a first word, at every door; where nothing was it may end at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import bitgen
from bitgen.data.sampler import SampleKey
from bitgen.memory.answering import Speaker
from bitgen.model.causal_lm_bitgen import BitGenForCausalLM
from bitgen.model.modeling_bitgen import BitGenModel
from bitgen.model.spoken_memory import SpokenMemory
from support.data import picture
from support.models import tiny_config
from support.speaking import dataset, make_objective
from support.spoken_memories import CODE, KEY, TEXTS, TOKENS, finds, speaking_run
from support.tokenizers import tiny_tokenizer

# What was said: of each answer, whether something was recalled for it. Asked by pictures or by texts.
Said = Callable[[bool], list[tuple[str, bool]]]
WORD = "dog"


@pytest.fixture(autouse=True)
def ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that ends as soon as it may, and else says one word."""

    def favoured(model: BitGenModel, states: torch.Tensor) -> torch.Tensor:
        logits = lm_logits(model, states)
        logits[..., favourites(model)] += torch.tensor([2e4, 1e4])
        return logits

    lm_logits = BitGenModel.lm_logits
    monkeypatch.setattr(BitGenModel, "lm_logits", favoured)


TOKENIZERS: dict[int, PreTrainedTokenizerBase] = {}  # by the vocabulary's size


def favourites(model: BitGenModel) -> list[int]:
    tokenizer = TOKENIZERS[model.config.vocab_size]
    return [tokenizer.eos_token_id, *tokenizer(WORD, add_special_tokens=False)["input_ids"][:1]]


def of_a_file(monkeypatch: pytest.MonkeyPatch, found: bool) -> Said:
    opened = bitgen.load(speaking_run())
    TOKENIZERS[opened.trained.model.config.vocab_size] = opened.trained.tokenizer
    memory = opened.memory()
    memory.tell(TEXTS[:2])
    memory.write([picture(0)], TEXTS[2:3])
    finds(monkeypatch, found)

    def said(pictured: bool) -> list[tuple[str, bool]]:
        if not pictured:
            return [(opened.answer("is it red", memory=memory), found)]
        return [
            (opened.caption(picture(0), memory=memory, num_beams=1), found),
            (opened.caption(picture(0), memory=memory, num_beams=3), found),
            (opened.answer("is it red", picture(0), memory=memory), found),
            (opened.caption(picture(0)), False),
        ]

    return said


def of_an_export(monkeypatch: pytest.MonkeyPatch, found: bool) -> Said:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    sizes = dict(recall_tokens=TOKENS, recall_dim=KEY, recall_code=CODE, vocab_size=len(tokenizer), max_seq_len=24)
    model = BitGenForCausalLM(tiny_config((9, 6), **sizes, bos_token_id=0, eos_token_id=1, pad_token_id=2)).eval()
    TOKENIZERS[len(tokenizer)] = tokenizer
    memory = SpokenMemory(model)
    for text in TEXTS[:3]:
        memory.teach(text, tokenizer)
    finds(monkeypatch, found)
    ids = torch.tensor([[2, 0, *tokenizer("red dog", add_special_tokens=False)["input_ids"]]])
    asked = {"input_ids": ids, "attention_mask": (ids != 2).long(), "max_new_tokens": 6}

    def said(pictured: bool) -> list[tuple[str, bool]]:
        given = asked | ({"vision_features": torch.randn(1, 9, 6)} if pictured else {})
        answers = []
        for options in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}, {"use_cache": False}):
            for row in model.generate(**given, **options, memory=memory)[:, ids.shape[1] :]:
                answers.append((tokenizer.decode(row, skip_special_tokens=True), found))
        own = model.generate(**given, memory=memory, logits_processor=[lambda ids, scores: 2 * scores])
        return [*answers, (tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True), found)]

    return said


def of_episodes(monkeypatch: pytest.MonkeyPatch, found: bool) -> Said:
    speaker = Speaker(make_objective(), dataset(held_out=True, picture_queries=12, sentence_queries=8))
    TOKENIZERS[speaker.model.config.vocab_size] = speaker.tokenizer
    episode = speaker.data.maker.episode(SampleKey(0))
    tensors = speaker.tensors(episode)
    memory = speaker.teach(tensors)
    finds(monkeypatch, found)

    def said(pictured: bool) -> list[tuple[str, bool]]:
        answers = [
            answer
            for answer in speaker.ask(memory, episode, tensors, told=found)
            if (answer.query.picture is not None) == pictured
        ]
        # Told what each is about: those about nothing recall nothing, beside others of the same batch that do.
        assert len({bool(answer.facts) for answer in answers}) == 1 + found
        return [(answer.said, bool(answer.facts)) for answer in answers] + [(answer.plain, False) for answer in answers]

    return said


@pytest.mark.parametrize("pictured", [True, False], ids=["picture", "text"])
@pytest.mark.parametrize("found", [True, False], ids=["found", "nothing"])
@pytest.mark.parametrize("door", [of_a_file, of_an_export, of_episodes])
def test_an_answer_from_a_memory_does_not_end_before_it_begins(
    door: Callable[[pytest.MonkeyPatch, bool], Said], found: bool, pictured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = door(monkeypatch, found)(pictured)
    assert answers
    for said, recalled in answers:
        assert bool(said.strip()) == recalled, (said, recalled)
