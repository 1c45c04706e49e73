"""Episodes of photographs: other views of what was taught, names and wordings of one part, all decided by the key."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from bitgen.data.bad_records import BadRecord
from bitgen.data.dataset import PairDataset
from bitgen.data.episodes.dataset import EpisodeDataset, collate_episode
from bitgen.data.episodes.names import is_held_out_name
from bitgen.data.episodes.photos import STRANGERS, PhotoEpisodes, View, view_of
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes.named import ALONE
from support.data import write_features
from support.speaking import SMALL, made_of, names_in, processor


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
    captions = [[f"a dog of {n} spots", f"some dog of {n} spots"] for n in range(20)]
    folder = write_features(tmp_path_factory.mktemp("photographs") / "features", captions, shape=(16, 6))
    return PairDataset(folder, processor(), seed=0)


def maker(photographs: PairDataset, held_out: bool = False, **sizes: int) -> PhotoEpisodes:
    sizes = SMALL | {"picture_queries": 20} | sizes
    return PhotoEpisodes(photographs, processor(), 3, held_out=held_out, **sizes)


@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_asked_shows_what_was_taught_or_a_stranger(photographs, held_out: bool) -> None:
    seen: Counter[str] = Counter()
    forms = set(ALONE[-1:] if held_out else ALONE[:-1])
    for index in range(20):
        episode = maker(photographs, held_out).episode(SampleKey(index))
        taught = {episode.pictures[number].row: text for text, number in episode.taught if number is not None}
        for text in taught.values():
            form = text.replace(names_in(text, 1)[0], "{name}")
            assert form in forms if held_out else made_of(form, forms)
        for text, number in episode.taught:
            assert all(is_held_out_name(name) == held_out for name in names_in(text, 2 if number is None else 1))
        for query in episode.queries:
            seen[query.kind] += 1
            if query.picture is None:
                continue
            view = episode.pictures[query.picture]
            said = query.answer.partition(": ")
            if query.kind == "unknown":
                assert view.row not in taught and query.facts == () and not query.names
                assert query.answer in photographs.captions_of(view.row)
                continue
            ((row,), (name,)) = query.facts, query.names.values()
            text, number = episode.taught[row]
            assert episode.pictures[number].row == view.row and names_in(text, 1) == [name] == [said[0]]
            assert said[2] in photographs.captions_of(view.row)
            assert (view.seed is None) == (query.kind == "same")
    assert set(seen) == {"view", "same", "unknown", "sentence", "sentence_back", "sentence_unknown"}


def test_an_episode_and_its_views_are_functions_of_the_key(photographs) -> None:
    made = maker(photographs)
    found = [made.episode(SampleKey(index, epoch)) for index in range(3) for epoch in range(2)]
    assert found == [maker(photographs).episode(SampleKey(index, epoch)) for index in range(3) for epoch in range(2)]
    assert all(one != other for n, one in enumerate(found) for other in found[:n])
    data = EpisodeDataset(made, processor(), 4, 0, str)
    one, other = data[SampleKey(1)], data[SampleKey(1)]
    assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)
    assert one["query_pictures"].shape[1:] == (16, 6)


def test_taught_photographs_are_as_they_are_stored_and_views_are_not(photographs) -> None:
    made = maker(photographs)
    stored = photographs.image_tensor(3)
    assert torch.equal(made.tensor(View(3, None)), stored)
    views = [made.tensor(View(3, seed)) for seed in range(20)]
    assert all(view.shape == stored.shape and view.isfinite().all() for view in views)
    assert sum(torch.equal(view, stored) for view in views) <= 1
    assert len({view.numpy().tobytes() for view in views}) == 20
    assert torch.equal(made.tensor(View(3, 7)), views[7]) and torch.equal(photographs.image_tensor(3), stored)


def test_a_view_shows_a_part_of_the_grid_mirrored_or_not() -> None:
    """Of features that say their own column: they rise or fall from left to right, as much as a crop shows."""
    grid = torch.arange(8.0).expand(8, 8).reshape(64, 1)
    turned = Counter()
    for seed in range(40):
        view = view_of(grid, random.Random(seed)).view(8, 8)
        assert view.min() >= 0 and view.max() <= 7
        turned[bool(view.diff(dim=1).median() > 0)] += 1
    assert min(turned.values()) > 8


def test_too_few_photographs_leave_no_stranger(photographs) -> None:
    most = photographs.image_count - STRANGERS
    episode = maker(photographs, held_out=True, pictures=most).episode(SampleKey(0))
    assert sum(number is not None for _, number in episode.taught) == most


def test_one_picture_and_one_sentence_are_enough(photographs) -> None:
    episode = maker(photographs, pictures=1, sentences=1).episode(SampleKey(0))
    assert [number is None for _, number in episode.taught] == [False, True]


def test_an_episode_with_a_picture_that_cannot_be_used_gives_way_to_another(photographs, monkeypatch) -> None:
    """And is counted; a resumed run meets the same one again."""
    made = maker(photographs)
    data = EpisodeDataset(made, processor(), 9, 3, str)
    first = made.episode(SampleKey(4, 0))
    bad, load = first.pictures[0].row, photographs.image_tensor

    def image_tensor(row: int) -> torch.Tensor:
        if row == bad:
            raise BadRecord(f"record {row} holds NaN", "not finite")
        return load(row)

    monkeypatch.setattr(photographs, "image_tensor", image_tensor)
    sample = data[SampleKey(4, 0)]
    assert sample["index"] == 4 and sample["skipped"].message == f"record {bad} holds NaN"
    assert collate_episode([sample])["skipped"] == [sample["skipped"]]
    again = data[SampleKey(4, 0)]
    assert all(torch.equal(value, again[name]) for name, value in sample.items() if torch.is_tensor(value))
