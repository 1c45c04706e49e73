"""Episodes: what is taught answers what is asked; training has nothing of the evaluation; all is drawn anew."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest
import torch

from bitgen.data.episodes.dataset import Episode, EpisodeDataset, Query, collate_episode
from bitgen.data.episodes.facts import RELATIONS
from bitgen.data.episodes.names import is_held_out_name
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.descriptions import COLOURS, SHAPES, Scene
from bitgen.data.scenes.named import ALONE, ONE_OF, QUESTIONS, Entity, entities, read_named_caption
from bitgen.data.scenes.reading import read_caption
from bitgen.data.scenes.wording import RELATION_WORDS, opposite
from bitgen.model.likelihood import IGNORED
from support.speaking import (
    SMALL,
    dataset,
    episodes,
    kinds,
    led_by,
    made_of,
    maker,
    names_in,
    processor,
    small,
    texts_of,
)
from support.warm import run_warm

FULL = dict(pictures=24, sentences=24, picture_queries=32, sentence_queries=24)
OWN = len(entities(True)) - 4  # what evaluation can teach that training never does, beside what it leaves unknown
CAPTIONS = ("taught", "alone", "with", "two")
KINDS = {*CAPTIONS, "question", "unknown", "sentence", "sentence_back", "sentence_unknown"}
BOTH_PARTS = pytest.mark.parametrize("held_out", [False, True])
_NAME = re.compile(r"\b[A-Z][a-z]+\b")
_THING = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")

_STATED = sorted((way for ways, *_ in RELATION_WORDS.values() for way in ways), key=len, reverse=True)
_RELATION = re.compile(rf"\b(?:{'|'.join(_STATED)}) the <thing>")


@pytest.fixture(scope="module")
def many() -> dict[bool, list[Episode]]:
    """Episodes of training, as large as they are there, and of evaluation."""
    return {False: episodes(40, **FULL), True: episodes(20, held_out=True, **(FULL | {"pictures": OWN}))}


def things_of(scene: Scene) -> list[Entity]:
    return [Entity(thing.colour, thing.shape) for thing in scene.things]


def form_of(text: str, names: list[str], things: bool = False) -> str:
    """A text's wording: its names in their order, and the colours and shapes where it has some, taken out."""
    for number, name in enumerate(names):
        text = re.sub(rf"\b{name}\b", f"<{number}>", text)
    return _THING.sub("<thing>", text[:1].lower() + text[1:]) if things else text


# ---- what is never in both parts ----


@BOTH_PARTS
def test_names_and_things_are_of_one_part(many, held_out: bool) -> None:
    ours = set(entities(held_out))
    for episode in many[held_out]:
        for text in texts_of(episode):
            for name in _NAME.findall(small(text)):
                assert is_held_out_name(name) == held_out, text
        for scene, _ in episode.pictures:
            assert set(things_of(scene)) <= ours, scene


@BOTH_PARTS
def test_wordings_are_of_one_part(many, held_out: bool) -> None:
    """By the strings themselves: each is made back into its template."""
    part = slice(-1, None) if held_out else slice(None, -1)
    tellings: set[str] = set()
    namings = {form.format(name="<0>", thing="<thing>") for forms in (ALONE, ONE_OF) for form in forms[part]}
    seen: set[str] = set()
    led = 0  # questions about pictures behind made-up words
    for form in (form for relation in RELATIONS.values() for form in relation.told[part]):
        tellings |= {form.format(s="<0>", o="<1>"), form.format(s="<1>", o="<0>")}
    questions = {
        form.format(s="<0>", o="<0>")
        for relation in RELATIONS.values()
        for form in (*relation.asked[part], *relation.asked_back[part])
    }
    about_pictures = {form.format(relation="<relation>", other="<thing>") for form in QUESTIONS[part]}

    def look(form: str, forms: set[str], question: bool = False) -> None:
        found = forms & {form} if held_out else made_of(form, forms, question)
        assert found, form
        seen.update(found)

    worded = [] if held_out else episodes(200, **(FULL | {"pictures": 2, "picture_queries": 1}))
    for episode in [*many[held_out], *worded]:
        for text, picture in episode.taught:
            names = list(dict.fromkeys(names_in(text, 2 if picture is None else 1)))
            form = form_of(text, names, things=picture is not None)
            look(form, tellings if picture is None else namings)
        for query in episode.queries:
            form = form_of(query.prompt, names_in(query.prompt, int(query.picture is None)), things=True)
            if query.prompt and query.picture is not None:
                form = _RELATION.sub("<relation> the <thing>", form)
                look(form, about_pictures, question=True)
                led += bool(led_by(form))
            elif query.prompt:
                look(form, questions, question=True)
    assert namings | questions | about_pictures <= seen and (led > 0) != held_out


def test_the_parts_wordings_do_not_meet(many) -> None:
    def said(held_out: bool) -> set[str]:
        texts = [text for episode in many[held_out] for text, _ in episode.taught]
        texts += [query.prompt for episode in many[held_out] for query in episode.queries if query.prompt]
        return {_THING.sub("<thing>", _NAME.sub("<name>", small(text))) for text in texts}

    assert len(said(False)) > 50 and len(said(True)) > 10 and not said(False) & said(True)


def test_training_never_teaches_what_is_held_out_however_much_it_teaches() -> None:
    theirs = set(entities(True))
    for episode in episodes(30, pictures=200, sentences=1, picture_queries=1, sentence_queries=1):
        assert not theirs & {thing for scene, _ in episode.pictures for thing in things_of(scene)}


@pytest.mark.parametrize("many_taught", [30, 60, 76])
def test_evaluation_may_teach_more_than_it_asks_for(many_taught: int) -> None:
    """Beside its own it then teaches things of training, for which nothing is asked."""
    theirs = set(entities(False))
    for episode in episodes(4, held_out=True, pictures=many_taught, sentences=2, picture_queries=20):
        shown = [things_of(episode.pictures[number][0]) for _, number in episode.taught if number is not None]
        assert len(shown) == many_taught
        assert any(set(things) & theirs for things in shown)
        for _, query in kinds([episode], *CAPTIONS, "question", "unknown"):
            assert query.scene is not None and not theirs & set(things_of(query.scene))


# ---- what is taught answers what is asked ----


@BOTH_PARTS
def test_every_kind_is_there_and_numbers_are_those_asked_for(many, held_out: bool) -> None:
    found = Counter(query.kind for episode in many[held_out] for query in episode.queries)
    assert set(found) == KINDS
    assert min(found.values()) > 0.02 * found.total()
    for episode in many[held_out]:
        assert len(episode.queries) == FULL["picture_queries"] + FULL["sentence_queries"]
        pictured = [query.picture is not None for query in episode.queries]
        assert pictured == sorted(pictured, reverse=True), "those with a picture come first"
        taught = [number is not None for _, number in episode.taught]
        assert taught == sorted(taught, reverse=True)
    counts = {(sum(n is not None for _, n in e.taught), sum(n is None for _, n in e.taught)) for e in many[held_out]}
    if held_out:
        assert counts == {(OWN, 24)}
    else:
        assert len(counts) > 30 and all(2 <= count <= 24 for pair in counts for count in pair)


@BOTH_PARTS
def test_captions_name_what_was_taught_and_say_the_rest(many, held_out: bool) -> None:
    for _, query in kinds(many[held_out], *CAPTIONS):
        assert query.scene is not None and query.prompt == ""
        read = read_named_caption(query.answer, dict(query.names), query.scene)
        assert read is not None and read.meaning == query.scene.meaning, query.answer
        assert len(query.names) == len(query.facts) == (2 if query.kind == "two" else 1)
        assert query.kind == "taught" or len(query.scene.things) == (1 if query.kind == "alone" else 2)


@BOTH_PARTS
def test_a_question_about_a_picture_is_answered_by_who_stands_there(many, held_out: bool) -> None:
    stated = {words: relation for relation, (all_words, *_) in RELATION_WORDS.items() for words in all_words}
    for _, query in kinds(many[held_out], "question"):
        assert query.scene is not None
        (relation,) = {stated[words] for words in stated if f"{words} the " in query.prompt}
        other = _THING.search(query.prompt)
        assert other is not None
        first, second = things_of(query.scene)
        there, stands = (first, second) if relation == query.scene.where else (second, first)
        assert relation in (query.scene.where, opposite(query.scene.where))
        assert other[0] == " ".join(stands)
        assert query.answer == query.names[there] and list(query.names) == [there]


@BOTH_PARTS
def test_rows_of_facts_are_of_the_text_that_taught_the_answer(many, held_out: bool) -> None:
    for episode, query in kinds(many[held_out], *CAPTIONS, "question"):
        rows = dict(zip(query.facts, query.names.items(), strict=True))
        assert len(rows) == len(query.facts)
        for row, (entity, name) in rows.items():
            text, number = episode.taught[row]
            assert names_in(text, 1) == [name] and name in _NAME.findall(query.answer)
            assert number is not None and entity in things_of(episode.pictures[number][0])
            taught_of = _THING.search(text)
            assert taught_of is None or taught_of[0] == " ".join(entity)
    for episode, query in kinds(many[held_out], "sentence", "sentence_back"):
        ((text, number),) = [episode.taught[row] for row in query.facts]
        assert number is None and {query.answer, *names_in(query.prompt, 1)} == set(names_in(text, 2))
        assert query.answer not in re.findall(r"\w+", query.prompt)


@BOTH_PARTS
def test_what_is_about_nothing_is_about_nothing_that_was_taught(many, held_out: bool) -> None:
    for episode, query in kinds(many[held_out], "unknown"):
        named = {entity for other in episode.queries for entity in other.names}
        assert query.scene is not None and not named & set(things_of(query.scene))
        assert query.facts == () and not query.names
        read = read_caption(query.answer)
        assert read is not None and read.meaning == query.scene.meaning
    for episode, query in kinds(many[held_out], "sentence_unknown"):
        (subject,) = names_in(query.prompt, 1)
        told = {name for text, number in episode.taught for name in names_in(text, 2 if number is None else 1)}
        assert query.facts == () and query.answer == "" and query.picture is None
        assert subject not in told or not held_out, "in training it may be about something else of somebody told of"


@BOTH_PARTS
def test_a_query_shows_a_new_picture_or_the_very_one_that_was_taught(many, held_out: bool) -> None:
    for episode in many[held_out]:
        taught = [number for _, number in episode.taught if number is not None]
        asked = [query for query in episode.queries if query.picture is not None]
        new = [query.picture for query in asked if query.kind != "taught"]
        assert sorted(taught + new) == list(range(len(episode.pictures)))
        for query in asked:
            assert episode.pictures[query.picture][0] == query.scene
            if query.kind == "taught":
                assert [episode.taught[row][1] for row in query.facts] == [query.picture]


# ---- drawn anew, by the key alone ----


def test_an_episode_is_a_function_of_seed_epoch_and_index() -> None:
    made, again, other = maker(), maker(), maker(seed=4)
    keys = [SampleKey(index, epoch) for index in range(3) for epoch in range(3)]
    found = [made.episode(key) for key in keys]
    assert [again.episode(key) for key in reversed(keys)] == found[::-1]
    for index, one in enumerate(found):
        assert all(one != each for each in [*found[:index], *(other.episode(key) for key in keys)])
    assert maker(held_out=True).episode(keys[0]) != found[0]


def test_another_process_makes_the_same_episodes() -> None:
    """Whose strings and sets have other hashes."""
    done = run_warm(["-c", "from support.speaking import episodes; print(hash('a')); print(repr(episodes(2)))"])
    assert done.returncode == 0, done.stderr
    other_hash, _, made = done.stdout.strip().partition("\n")
    assert int(other_hash) != hash("a") and made == repr(episodes(2))


def test_a_thing_has_another_name_in_each_episode(many) -> None:
    named: dict[Entity, list[str]] = defaultdict(list)
    for episode in many[False]:
        for entity, name in {pair for query in episode.queries for pair in query.names.items()}:
            named[entity].append(name)
    assert len(named) == len(entities(False))
    assert all(len(set(names)) > 0.9 * len(names) for names in named.values())
    assert sum(map(len, named.values())) > 5 * len(named)


def test_tensors_are_the_same_whenever_they_are_asked_for() -> None:
    data, again = dataset(), dataset()
    for key in (SampleKey(1), SampleKey(0, 2), 5):
        one, other = data[key], again[key]
        assert one.keys() == other.keys()
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
    assert not torch.equal(data[SampleKey(0, 0)]["taught_ids"], data[SampleKey(0, 1)]["taught_ids"])


# ---- tensors ----


def answer_of(row: int, tensors: dict) -> str:
    """What the labels of a query say, without what ends them."""
    tokenizer = processor().tokenizer
    kept = tensors["labels"][row][tensors["labels"][row] != IGNORED].tolist()
    assert kept and kept[-1] == tokenizer.eos_token_id and tokenizer.bos_token_id not in kept
    return tokenizer.decode(kept[:-1])


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_are_the_answers_tokens_alone(held_out: bool) -> None:
    seen: Counter[str] = Counter()
    for index in range(6):
        data = dataset(held_out=held_out, picture_queries=16, sentence_queries=8)
        episode = data.maker.episode(SampleKey(index))
        tensors = data.tensors(episode)
        for row, query in enumerate(episode.queries):
            labels, ids, mask = (tensors[name][row] for name in ("labels", "input_ids", "attention_mask"))
            seen[query.kind] += 1
            if not query.facts:
                assert (labels == IGNORED).all(), "what is said of nothing that was taught is not learned"
                continue
            at = (labels != IGNORED).nonzero().flatten()
            assert torch.equal(labels[at], ids[at + 1]) and bool(mask[at].all())
            assert at.tolist() == list(range(int(at[0]), int(mask.sum()) - 1)), "without a gap, up to the end"
            said = answer_of(row, tensors)
            assert said == (f" {query.answer}" if query.prompt else query.answer)
            before = processor().tokenizer.decode(ids[1 : int(at[0]) + 1].tolist())
            assert before == query.prompt, "the prompt itself is not learned"
    assert set(seen) == KINDS


def test_tensors_hold_what_the_episode_says() -> None:
    data = dataset()
    episode, tokenizer = data.maker.episode(SampleKey(2)), processor().tokenizer
    tensors = data.tensors(episode)
    pictured = [query for query in episode.queries if query.picture is not None]
    worded = [query for query in episode.queries if query.picture is None]
    assert (len(pictured), len(worded)) == (SMALL["picture_queries"], SMALL["sentence_queries"])
    for name, mask, texts in (
        ("taught_ids", "taught_mask", [text for text, _ in episode.taught]),
        ("prompt_ids", "prompt_mask", [query.prompt for query in worded]),
        ("input_ids", "attention_mask", [f"{q.prompt} {q.answer}" if q.prompt else q.answer for q in episode.queries]),
    ):
        rows = [ids[kept.bool()].tolist() for ids, kept in zip(tensors[name], tensors[mask], strict=True)]
        assert [tokenizer.decode(ids[1:-1]) for ids in rows] == texts
        assert all((ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id) for ids in rows)
    assert [tuple(row[row >= 0].tolist()) for row in tensors["facts"]] == [query.facts for query in episode.queries]
    for name, numbers in (
        ("taught_pictures", [number for _, number in episode.taught if number is not None]),
        ("query_pictures", [query.picture for query in pictured]),
    ):
        drawn = torch.stack([data.maker.tensor(episode.pictures[number]) for number in numbers])
        assert drawn.shape[1:] == (3, 28, 28) and torch.equal(tensors[name], drawn)
        assert len({picture.numpy().tobytes() for picture in drawn}) == len(set(numbers))


def test_a_batch_is_one_episode() -> None:
    data = dataset()
    sample = data[SampleKey(3)]
    batch = collate_episode([sample])
    assert batch.pop("indices").tolist() == [3] and sample.pop("index") == 3
    assert batch.keys() == sample.keys() and all(torch.equal(batch[name], sample[name]) for name in sample)
    ranks = [data.batch_sampler(1, rank, 2) for rank in (0, 1)]
    seen = [key.index for sampler in ranks for keys in sampler for key in keys]
    assert sorted(seen) == list(range(len(data)))


@pytest.mark.parametrize("sizes", [{"pictures": 1}, {"sentences": 1}, {"pictures": 1, "sentences": 1}], ids=str)
def test_one_of_a_kind_is_enough(sizes: dict[str, int]) -> None:
    for episode in episodes(5, **sizes):
        numbers = [number for _, number in episode.taught]
        assert 0 < numbers.count(None) < len(numbers)
        assert len(episode.queries) == SMALL["picture_queries"] + SMALL["sentence_queries"]


@pytest.mark.parametrize("chained", [None, 0.9])
def test_sentences_tell_of_each_others_people_where_that_is_asked_for(chained: float | None) -> None:
    """In evaluation not otherwise, so that its figures go on meaning what they meant."""
    shared = 0
    for episode in episodes(10, held_out=True, sentences=12, chained=chained):
        told = [re.findall(r"\b[A-Z]\w*", text) for text, picture in episode.taught if picture is None]
        assert len(told) == 12 and {len(names) for names in told} == {2}
        # Of these wordings the first name is what is told of the second.
        shared += len({first for first, _ in told} & {second for _, second in told})
    assert (shared > 40) if chained else (shared == 0)


def test_each_episode_asks_for_something_that_was_taught() -> None:
    """Else the readers would now and then get no gradient, for which several processes wait for ever."""
    for episode in episodes(200, picture_queries=1, sentence_queries=1):
        assert any(query.facts for query in episode.queries)


def test_a_long_text_is_cut_and_its_labels_with_it() -> None:
    data = dataset()
    query = Query("sentence", "who owns Blick?", "Rex " * 60, (0,))
    short = EpisodeDataset(data.maker, processor(), 1, 0, str)
    episode = data.maker.episode(SampleKey(0))
    tensors = short.tensors(Episode(episode.taught, (*episode.queries, query), episode.pictures))
    assert tensors["input_ids"].shape == tensors["labels"].shape == (13, processor().max_length)
    assert int((tensors["labels"][-1] != IGNORED).sum()) > 40
