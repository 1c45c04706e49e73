"""The built-in scenes as data: what is held out, what repeats, and the dataset."""

import contextlib
import hashlib
import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitgen.data.collate import Collator, build_loader
from bitgen.data.sampler import SampleKey
from bitgen.data.scenes import dataset as scenes
from bitgen.data.scenes import descriptions
from bitgen.data.scenes.dataset import ScenesDataset, is_held_out, iter_scenes, scene_captions
from bitgen.data.scenes.descriptions import ARRANGEMENTS, COLOURS, PLACES, RELATIONS, SHAPES, is_held_out_pair
from bitgen.data.tokenizer import build_tokenizer
from bitgen.model.processing_bitgen import BitGenProcessor
from support.warm import run_warm

SEED = 7

# ---------------------------------------------------------------- held-out combinations


def test_no_training_scene_has_a_held_out_combination_whatever_the_seeds():
    train = list(iter_scenes("train", 6000, SEED))
    train_objects = {(thing.colour, thing.shape) for scene in train for thing in scene.things}
    held_out_objects = {(colour, shape) for colour in COLOURS for shape in SHAPES if is_held_out_pair(colour, shape)}
    assert len(held_out_objects) == 10
    assert len({colour for colour, _ in held_out_objects}) == 10
    assert {shape for _, shape in held_out_objects} == set(SHAPES)
    assert len(train_objects) == 70 and not train_objects & held_out_objects
    train_compositions = {(scene.kind, scene.composition) for scene in train}
    train_meanings = {scene.meaning for scene in train}
    rules = Counter()
    for seed in (SEED, SEED + 1):
        for scene in iter_scenes("val", 600, seed):
            by_object = any((thing.colour, thing.shape) in held_out_objects for thing in scene.things)
            by_composition = (scene.kind, scene.composition) not in train_compositions
            assert by_object or by_composition, scene
            assert scene.meaning not in train_meanings
            rules["object" if by_object else "composition"] += 1
    assert min(rules.values()) > 300, rules  # both rules are exercised


def test_every_part_of_a_scene_is_seen_in_training():
    train = list(iter_scenes("train", 6000, SEED))
    assert {thing.colour for scene in train for thing in scene.things} == set(COLOURS)
    assert {thing.shape for scene in train for thing in scene.things} == set(SHAPES)
    assert {scene.where for scene in train} == {*PLACES, *RELATIONS, *ARRANGEMENTS}
    assert {thing.count for scene in train for thing in scene.things} == {1, 2, 3, 4}
    shared = Counter(colour_or_shape for scene in train for thing in scene.things for colour_or_shape in
                     (thing.colour, thing.shape))  # fmt: skip
    assert min(shared.values()) > 300


def test_composition_ignores_order_of_objects_and_background():
    scene = next(scene for scene in iter_scenes("train", 100, SEED) if scene.kind == "relation")
    swapped = replace(scene, things=scene.things[::-1])
    assert swapped.composition == scene.composition and swapped.meaning != scene.meaning
    assert not is_held_out(swapped)
    assert replace(scene, background="light").meaning == replace(scene, background="dark").meaning


@pytest.mark.parametrize("size", [600, 3000])
def test_validation_scenes_and_captions_are_all_different_and_none_is_in_training(size: int):
    assert len({scene.meaning for scene in iter_scenes("val", size, SEED)}) == size
    captions = list(scene_captions("val", size, SEED))
    assert len(captions) == scenes.CAPTIONS_PER_SCENE * size
    assert len(set(captions)) == len(captions)
    assert not set(captions) & set(scene_captions("train", 6000, SEED))


@pytest.mark.parametrize("split", ["train", "val"])
def test_another_picture_is_of_the_same_scene_and_repeatable(split):
    reader = scenes.SceneReader(split, 30, 7)
    for index in range(30):
        first, other = reader.picture(index, 56), reader.another_picture(index, 56)
        assert first.tobytes() != other.tobytes() == reader.another_picture(index, 56).tobytes()
        tones = [np.asarray(picture).astype(int)[:3, :3].mean() for picture in (first, other)]
        assert (tones[0] > 128) == (tones[1] > 128) == (reader.scenes[index].background == "light")


# ---------------------------------------------------------------- reproducibility

FINGERPRINT = """
import hashlib
from bitgen.data.scenes.dataset import SceneReader
digest = hashlib.sha256()
for split in ("train", "val"):
    reader = SceneReader(split, 40, 7)
    for index in range(40):
        digest.update(repr((reader.scenes[index], reader.captions(index))).encode())
        digest.update(reader.picture(index, 56, epoch=3).tobytes())
print(digest.hexdigest())
"""


def test_scenes_are_the_same_in_another_process():
    """Whose strings and sets have other hashes."""
    run = run_warm(["-c", f"{FINGERPRINT}\nprint(hash('a'))"])
    assert run.returncode == 0, run.stderr
    digest, other_hash = run.stdout.split()
    assert int(other_hash) != hash("a")
    with contextlib.redirect_stdout(io.StringIO()) as own:
        exec(FINGERPRINT, {})
    assert digest == own.getvalue().strip() and len(digest) == len(hashlib.sha256().hexdigest())


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_scene_does_not_depend_on_how_many_are_asked_for(split: str):
    few, many = list(iter_scenes(split, 50, SEED)), list(iter_scenes(split, 200, SEED))
    assert few == many[:50]
    assert few != list(iter_scenes(split, 50, SEED + 1))


def test_impossible_requests_say_what_to_change(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="test.*train, val"):
        iter_scenes("test", 10, SEED)
    with pytest.raises(ValueError, match="scenes_train is 0"):
        iter_scenes("train", 0, SEED)
    monkeypatch.setattr(descriptions, "_DRAWS_BEFORE_GIVING_UP", 10)
    with pytest.raises(ValueError, match=r"scenes_val is 100000.*use \d+ or less"):
        list(iter_scenes("val", 100_000, SEED))


# ---------------------------------------------------------------- the dataset


@pytest.fixture(scope="module")
def processor() -> BitGenProcessor:
    tokenizer = build_tokenizer("train", scene_captions("train", 200, SEED), 512, None)
    return BitGenProcessor(tokenizer, image_size=56, max_length=48)


def test_samples_pair_a_scene_with_its_caption(processor: BitGenProcessor):
    dataset = ScenesDataset("val", 30, SEED, processor)
    assert (len(dataset), dataset.image_count, dataset.num_captions) == (90, 30, 90)
    assert dataset.kind == "images" and dataset.feature_shape is None and dataset.truncated == 0
    assert list(dataset.iter_captions()) == list(scene_captions("val", 30, SEED))
    for index in (0, 31, 89):
        sample = dataset[SampleKey(index, 0)]
        image = index // 3
        assert (sample["image_id"], sample["index"]) == (image, index)
        assert sample["pixel_values"].shape == (3, 56, 56) and sample["pixel_values"].dtype == torch.float32
        assert torch.equal(sample["pixel_values"], dataset.image_tensor(image))
        text = processor.tokenizer.decode(sample["input_ids"], skip_special_tokens=True)
        assert text.strip() == dataset.captions_of(image)[index % 3]
    assert "val" in dataset.record_name(31) and "10" in dataset.record_name(31)
    with pytest.raises(IndexError):
        dataset[90]


def test_training_pictures_change_with_the_epoch_and_validation_pictures_do_not(processor: BitGenProcessor):
    train, val = (ScenesDataset(split, 5, SEED, processor) for split in ("train", "val"))
    first, again, later = (train[SampleKey(3, epoch)]["pixel_values"] for epoch in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, later)
    assert torch.equal(val[SampleKey(3, 1)]["pixel_values"], val[SampleKey(3, 2)]["pixel_values"])


def test_one_caption_an_image_is_drawn_anew_each_epoch(processor: BitGenProcessor):
    dataset = ScenesDataset("train", 5, SEED, processor, caption_sampling="one")
    assert len(dataset) == 5
    drawn = {tuple(dataset[SampleKey(2, epoch)]["input_ids"].tolist()) for epoch in range(40)}
    assert drawn == {tuple(dataset.tokens(caption).tolist()) for caption in (6, 7, 8)}
    assert dataset[SampleKey(2, 0)]["image_id"] == 2
    with pytest.raises(ValueError, match="caption_sampling"):
        ScenesDataset("train", 5, SEED, processor, caption_sampling="some")


def test_workers_deliver_the_same_batches(processor: BitGenProcessor):
    dataset = ScenesDataset("train", 8, SEED, processor)
    keys = [[SampleKey(i, 2) for i in (0, 1, 9, 23)], [SampleKey(i, 2) for i in (4, 5, 6, 7)]]
    collate = Collator(processor.tokenizer.pad_token_id)
    alone, helped = (list(build_loader(dataset, keys, workers, collate)) for workers in (0, 2))
    assert alone[0]["image_ids"].tolist() == [0, 0, 3, 7]
    for left, right in zip(alone, helped, strict=True):
        assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
