import json
import logging

import numpy as np
import pytest
import torch

from bitgen.data.collate import Collator, build_loader
from bitgen.data.dataset import PairDataset
from bitgen.data.record_writer import write_dataset
from bitgen.data.records import DatasetInfo, Record
from bitgen.data.sampler import ResumableBatchSampler, SampleKey
from bitgen.data.views import random_view
from bitgen.model.processing_bitgen import WHOLE, BitGenProcessor
from support.data import write_images


def test_pairs_of_images(image_folder, processor):
    dataset = PairDataset(image_folder, processor)
    assert (len(dataset), dataset.image_count, dataset.num_captions) == (19, 10, 19)
    assert (dataset.kind, dataset.feature_shape) == ("images", None)
    seen = [(sample["image_id"], sample["index"]) for sample in (dataset[index] for index in range(19))]
    assert seen == [
        (image, sum(1 + i % 3 for i in range(image)) + c) for image in range(10) for c in range(1 + image % 3)
    ]
    sample = dataset[SampleKey(4, 7)]
    assert sample["image_id"] == 2
    expected = processor.texts([dataset.captions_of(2)[1]])["input_ids"][0]
    assert torch.equal(sample["input_ids"], expected) and torch.equal(dataset.tokens(4), expected)
    assert torch.equal(sample["pixel_values"], dataset.image_tensor(2))
    assert sample["pixel_values"].shape == (3, 8, 8)
    assert dataset.record_name(4) == f"dataset {image_folder}, record 2 (2.png)"
    with pytest.raises(IndexError):
        dataset[19]


def test_pairs_of_features(feature_folder, processor):
    dataset = PairDataset(feature_folder, processor, feature_dim=3, feature_tokens=4)
    assert (dataset.kind, dataset.feature_shape) == ("features", (4, 3))
    rows = np.load(feature_folder.parent / "rows.npy").astype(np.float32)
    for index in range(len(dataset)):
        sample = dataset[index]
        np.testing.assert_array_equal(sample["vision_features"].numpy(), (rows[sample["image_id"]] - 7) * 0.5)
    assert sample["vision_features"].dtype == torch.float32


def test_one_caption_an_image_is_drawn_anew_each_epoch(image_folder, processor):
    dataset = PairDataset(image_folder, processor, seed=3, caption_sampling="one")
    again = PairDataset(image_folder, processor, seed=3, caption_sampling="one")
    other = PairDataset(image_folder, processor, seed=4, caption_sampling="one")
    assert len(dataset) == 10

    def drawn(source, image):
        return [tuple(source[SampleKey(image, epoch)]["input_ids"].tolist()) for epoch in range(30)]

    for image in range(10):
        captions = {tuple(ids) for ids in processor.encode(dataset.captions_of(image))}
        assert set(drawn(dataset, image)) == captions
        assert drawn(dataset, image) == drawn(again, image)
    assert drawn(dataset, 2) != drawn(other, 2)
    assert dataset.record_name(4).endswith("record 4 (4.png)")


def test_max_images(image_folder, processor):
    dataset = PairDataset(image_folder, processor, max_images=4)
    assert (dataset.image_count, len(dataset), len(list(dataset.iter_captions()))) == (4, 7, 7)
    assert PairDataset(image_folder, processor, max_images=99).image_count == 10
    with pytest.raises(ValueError, match="max_images"):
        PairDataset(image_folder, processor, max_images=0)


def test_augmentation_depends_on_seed_epoch_and_index_only(image_folder, processor):
    dataset = PairDataset(image_folder, processor, seed=1, augment=True)
    torch.manual_seed(0)
    first = dataset[SampleKey(3, 0)]["pixel_values"]
    torch.manual_seed(1)
    assert torch.equal(first, dataset[SampleKey(3, 0)]["pixel_values"])
    assert not torch.equal(first, dataset[SampleKey(3, 1)]["pixel_values"])
    assert not torch.equal(first, dataset.image_tensor(dataset[3]["image_id"]))


def test_augmented_views_stay_inside_and_mirror_no_sides(tmp_path, processor, image_folder):
    payload = PairDataset(image_folder, processor).reader.payload(0)
    records = [Record("a", payload, ["a dog to the Left", "two dogs"])]
    write_images(tmp_path / "sides", records)
    dataset = PairDataset(tmp_path / "sides", processor, augment=True)
    views = [random_view(np.random.default_rng(seed), dataset.captions_of(0)[seed % 2]) for seed in range(400)]
    boxes = np.array([view.box for view in views])
    assert boxes.min() >= 0 and boxes.max() <= 1
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert areas.min() > 0.55 and areas.max() <= 1 and areas.std() > 0.05
    assert not any(view.mirror for view in views[::2])
    assert 0.4 < np.mean([view.mirror for view in views[1::2]]) < 0.6


@pytest.mark.parametrize(
    "caption",
    ["ein Hund links", "un chien \u00e0 gauche", "a la derecha", "\u5de6\u8fb9\u7684\u72d7", "til h\u00f8yre"],
)
def test_sides_are_known_in_other_languages(caption):
    assert not any(random_view(np.random.default_rng(seed), caption).mirror for seed in range(50))


def test_features_are_not_augmented_and_that_is_said(feature_folder, processor, caplog):
    dataset = PairDataset(feature_folder, processor, augment=True)
    assert "no effect" in caplog.text
    assert torch.equal(dataset[0]["vision_features"], dataset.image_tensor(0, WHOLE))


def test_truncated_captions_are_counted(image_folder, tokenizer, caplog):
    caplog.set_level(logging.WARNING)
    dataset = PairDataset(image_folder, BitGenProcessor(tokenizer, 8, max_length=4))
    assert dataset.truncated == 19
    assert "19 of 19 captions are longer than max_seq_len 4" in caplog.text
    assert all(dataset.tokens(index)[-1] == tokenizer.eos_token_id for index in range(19))
    assert PairDataset(image_folder, BitGenProcessor(tokenizer, 8, max_length=64)).truncated == 0


# ---------------------------------------------------------------- bad input


def test_feature_shape_that_the_model_does_not_take(feature_folder, processor):
    with pytest.raises(ValueError, match=r"feature_dim is 768.*4 tokens x 3: write --feature_dim 3"):
        PairDataset(feature_folder, processor, feature_dim=768)
    with pytest.raises(ValueError, match=r"feature_tokens is 256.*write --feature_tokens 4"):
        PairDataset(feature_folder, processor, feature_tokens=256)
    with pytest.raises(ValueError, match="caption_sampling"):
        PairDataset(feature_folder, processor, caption_sampling="some")


def test_damaged_records_are_named_when_met(tmp_path, image_folder, processor):
    good = PairDataset(image_folder, processor).reader.payload(0)
    records = [Record("good.png", good, ["a"]), Record("half.png", good[:300], ["b"]), Record("x.png", b"", ["c"])]
    write_images(tmp_path / "d", records)
    dataset = PairDataset(tmp_path / "d", processor)
    dataset[0]
    with pytest.raises(ValueError, match=r"/d, record 1 \(half.png\) cannot be read.*prepare the dataset again"):
        dataset[1]
    with pytest.raises(ValueError, match=r"record 2 \(x.png\)"):
        dataset[2]
    loader = build_loader(dataset, [[SampleKey(1)]], 1, Collator(2))
    with pytest.raises(ValueError, match=r"record 1 \(half.png\)"):
        next(iter(loader))


def test_feature_rows_of_another_size_or_not_finite(tmp_path, processor):
    row = np.array([[1, np.nan]], dtype=np.float16)
    info = DatasetInfo("features", "made up", feature_shape=(1, 2), feature_dtype="float16")
    write_dataset(tmp_path / "d", [Record("a.jpg", row.tobytes(), ["a"])], info)
    with pytest.raises(ValueError, match=r"record 0 \(a.jpg\) has NaN"):
        PairDataset(tmp_path / "d", processor)[0]
    path = tmp_path / "d" / "bitgen_dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "feature_shape": [3, 2]}))
    with pytest.raises(ValueError, match=r"record 0 \(a.jpg\) holds 4 bytes"):
        PairDataset(tmp_path / "d", processor)[0]


def test_a_record_without_captions_is_named(tmp_path, processor):
    records = [Record("a.png", b"x", ["a"]), Record("b.png", b"x", [])]
    write_images(tmp_path / "d", records)
    with pytest.raises(ValueError, match=r"record 1 \(b.png\) has no caption"):
        PairDataset(tmp_path / "d", processor)


# ---------------------------------------------------------------- batches


def test_collator(image_folder, feature_folder, processor, tokenizer):
    collate = Collator(tokenizer.pad_token_id)
    dataset = PairDataset(image_folder, processor)
    batch = collate([dataset[3], dataset[0], dataset[4]])
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "image_ids", "indices"}
    assert batch["image_ids"].tolist() == [2, 0, 2] and batch["indices"].tolist() == [3, 0, 4]
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    texts = processor.texts([dataset.captions_of(2)[0], dataset.captions_of(0)[0], dataset.captions_of(2)[1]])
    assert torch.equal(batch["input_ids"], texts["input_ids"])
    assert torch.equal(batch["attention_mask"], texts["attention_mask"])
    assert all(batch[name].dtype == torch.int64 for name in set(batch) - {"pixel_values"})
    assert collate([PairDataset(feature_folder, processor)[0]])["vision_features"].shape == (1, 4, 3)


def test_loader_is_the_same_with_workers_and_leaves_the_global_generator_alone(image_folder, processor):
    dataset = PairDataset(image_folder, processor, augment=True, caption_sampling="one")
    sampler = ResumableBatchSampler(len(dataset), 3, seed=5)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    runs = [list(build_loader(dataset, sampler.epoch(2), workers, Collator(2))) for workers in (0, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(runs[0]) == len(runs[1]) == 3
    resumed = list(build_loader(dataset, sampler.epoch(2, start_batch=1), 1, Collator(2)))
    for one, other in (*zip(*runs, strict=True), *zip(runs[0][1:], resumed, strict=True)):
        assert all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- real data


@pytest.mark.realdata
def test_flickr_captions_with_gpt2_are_never_truncated(shared_data, tmp_path):
    import csv

    from bitgen.data.tokenizer import build_tokenizer

    with open(shared_data / "flickr8k" / "captions.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:501]
    by_image: dict[str, list[str]] = {}
    for name, caption in rows:
        by_image.setdefault(name, []).append(caption)
    images = shared_data / "flickr8k" / "images"
    present = [
        Record(name, (images / name).read_bytes(), texts)
        for name, texts in by_image.items()
        if (images / name).is_file()
    ]
    write_dataset(tmp_path / "d", present, DatasetInfo("images", "Flickr8k"))
    processor = BitGenProcessor(build_tokenizer(str(shared_data / "gpt2_tokenizer"), None, 50257, None), 224, 256)
    dataset = PairDataset(tmp_path / "d", processor)
    assert dataset.truncated == 0
    assert len(dataset) == 5 * dataset.image_count > 50
    tokenizer = processor.tokenizer
    for index in range(len(dataset)):
        ids = dataset.tokens(index)
        assert ids[0] == ids[-1] == tokenizer.eos_token_id
        image = int(dataset.caption_image[index])
        assert tokenizer.decode(ids[1:-1], clean_up_tokenization_spaces=False) == dataset.captions_of(image)[index % 5]
    pixels = torch.stack([dataset.image_tensor(image) for image in range(dataset.image_count)])
    # Photographs normalised once are about standard normal; normalised twice their mean is near -2.
    assert abs(pixels.mean()) < 0.5 and 0.7 < pixels.std() < 1.5
