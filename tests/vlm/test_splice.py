"""The splice against the original's numbers, and truncation, padding and packing against plain loops."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.splice import IGNORED, IMAGE_ID, Sample, Truncations, collate, expand, pack, splice, truncate
from bitgen.vlm.vision import StoredFeatures


@pytest.fixture
def fixture(shared_data):
    path = shared_data / "connector_fixtures" / "llava_splice_a.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the real data")
    return load_file(path)


def samples_of(fixture):
    """The fixture's rows without their padding, expanded. A row of text alone has one visual that stands nowhere."""
    samples, length = [], fixture["image_features"].shape[1]
    for ids, mask, labels in zip(fixture["input_ids"], fixture["attention_mask"], fixture["labels"], strict=True):
        real = mask.bool()
        sample = expand(ids[real], labels[real], [length] * int((ids == IMAGE_ID).sum()))
        samples.append(sample if sample.kept else sample._replace(kept=(0,)))
    return samples


@pytest.mark.realdata
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("most", [None, 9])
def test_the_originals_embeddings_labels_and_masks_come_out(fixture, side, most):
    embedding = nn.Embedding.from_pretrained(fixture["table"])
    samples = [truncate(sample, most) if most else sample for sample in samples_of(fixture)]
    batch = collate(samples, 0, side)
    embeds = splice(embedding, batch.input_ids, fixture["image_features"], batch.kept, batch.attention_mask)
    name = f"{side}_max{most}" if most else side
    torch.testing.assert_close(embeds, fixture[f"{name}_embeds"], atol=1e-6, rtol=0)
    assert torch.equal(batch.labels, fixture[f"{name}_labels"])
    assert torch.equal(batch.attention_mask, fixture[f"{name}_mask"])


class _AsTheyAre(nn.Module):
    """A connector of features that are as wide as the language model already."""

    def forward(self, features):
        return features[:, 0, 0]


class _Table(nn.Module):
    """What the model asks of a language model to embed a text."""

    def __init__(self, table):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table)

    def get_input_embeddings(self):
        return self.embedding


@pytest.mark.realdata
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_model_itself_embeds_as_the_original_does(fixture, side):
    samples, shape = samples_of(fixture), fixture["image_features"].shape[1:]
    model = VisionLanguageModel(StoredFeatures(*shape), _AsTheyAre(), _Table(fixture["table"]))
    batch = collate(samples, 0, side)
    # The original lets a text without a picture take one that it does not show; here it comes without one.
    shown = [number for number, kept in enumerate(batch.kept) if kept]
    assert len(shown) < len(batch.kept)
    inputs = {"input_ids": batch.input_ids, "features": fixture["image_features"][shown]}
    embeds = model.embed({**inputs, "frames": torch.ones(len(shown), dtype=torch.long)})
    real = fixture[f"{side}_mask"].bool()
    torch.testing.assert_close(embeds[real], fixture[f"{side}_embeds"][real], atol=1e-6, rtol=0)


def text(*ids):
    ids = torch.tensor(ids)
    return ids, torch.where(ids > 50, ids, IGNORED)  # ids above 50 are learned


def test_each_visual_takes_its_own_number_of_places():
    sample = expand(*text(1, IMAGE_ID, 5, IMAGE_ID, 60, 61), [2, 3])
    assert sample.ids.tolist() == [1, *[IMAGE_ID] * 2, 5, *[IMAGE_ID] * 3, 60, 61]
    assert sample.labels.tolist() == [*[IGNORED] * 7, 60, 61]
    assert sample.kept == (2, 3)


def test_visuals_that_the_text_does_not_have_are_an_error():
    with pytest.raises(ValueError, match="the text has 1 places for visuals and 2 visuals are given"):
        expand(*text(1, IMAGE_ID, 60), [2, 2])


@pytest.mark.parametrize(
    ("most", "kept", "lost", "cut", "unlearnable"),
    [(9, (2, 3), 0, 0, 0), (8, (2, 3), 1, 0, 0), (7, (2, 3), 2, 0, 1), (6, (2, 2), 3, 1, 1), (2, (1, 0), 7, 2, 1)],
)
def test_what_truncation_takes_is_counted_and_named(most, kept, lost, cut, unlearnable):
    count = Truncations()
    short = count("row 7", expand(*text(1, IMAGE_ID, 5, IMAGE_ID, 60, 61), [2, 3]), most)
    assert (len(short.ids), short.kept) == (most, kept)
    assert (count.tokens, count.visuals, count.unlearnable) == (lost, cut, unlearnable)
    assert count.names == (["row 7"] if lost else [])
    if lost:
        assert str(count).startswith("1 samples were truncated (row 7): ")


def test_a_cut_visual_keeps_its_first_tokens_and_gradients_reach_what_is_used():
    embedding, features = nn.Embedding(70, 4), torch.randn(3, 3, 4, requires_grad=True)
    first = truncate(expand(*text(1, IMAGE_ID, 5, IMAGE_ID, 60), [3, 3]), 7)
    second = expand(*text(1, IMAGE_ID, 61, 62), [3])
    batch = collate([first, second], 0)
    embeds = splice(embedding, batch.input_ids, features, batch.kept, batch.attention_mask)
    expected = torch.zeros(2, 7, 4)
    expected[0] = torch.cat([embedding(torch.tensor([1])), features[0], embedding(torch.tensor([5])), features[1, :2]])
    expected[1, :6] = torch.cat([embedding(torch.tensor([1])), features[2], embedding(torch.tensor([61, 62]))])
    assert torch.equal(embeds, expected)
    embeds.sum().backward()
    assert features.grad.sum(dim=2).tolist() == [[4, 4, 4], [4, 4, 0], [4, 4, 4]]
    assert embedding.weight.grad[0].abs().sum() == 0  # the padding token


def test_features_of_different_lengths_may_come_as_a_list():
    embedding, features = nn.Embedding(70, 4), [torch.randn(2, 4), torch.randn(5, 4)]
    batch = collate([expand(*text(IMAGE_ID, 60), [2]), expand(*text(IMAGE_ID, 60), [5])], 0)
    embeds = splice(embedding, batch.input_ids, features, batch.kept)
    assert torch.equal(embeds[0, :2], features[0]) and torch.equal(embeds[1, :5], features[1])


@pytest.mark.parametrize(
    ("features", "kept", "message"),
    [
        (torch.zeros(2, 3, 4), (3,), "the text has 1 visuals and features of 2 are given"),
        (torch.zeros(1, 2, 4), (3,), "visual 0 has 2 tokens and the text places for 3"),
        (torch.zeros(1, 3, 4), (2,), "places for 3 visual tokens and 1 visuals give 2"),
        (torch.zeros(1, 3, 5), (3,), "features are 5 wide and the language model 4"),
    ],
)
def test_features_that_do_not_fit_the_text_are_an_error(features, kept, message):
    batch = collate([expand(*text(IMAGE_ID, 60), [3])], 0)
    with pytest.raises(ValueError, match=message):
        splice(nn.Embedding(70, 4), batch.input_ids, features, kept)


def test_a_batch_of_text_alone_needs_no_features():
    embedding = nn.Embedding(70, 4)
    batch = collate([expand(*text(5, 60), [])], 0)
    assert torch.equal(splice(embedding, batch.input_ids, [], batch.kept), embedding(batch.input_ids))


@pytest.mark.parametrize("side", ["right", "left"])
def test_positions_count_real_tokens(side):
    batch = collate([expand(*text(5, 60), []), expand(*text(5, 6, 7, 60), [])], 0, side)
    assert batch.position_ids[0].tolist() == ([0, 1, 0, 0] if side == "right" else [0, 0, 0, 1])
    assert batch.position_ids[1].tolist() == [0, 1, 2, 3]


def test_packed_rows_hold_every_sample_once_and_whole():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (40,), generator=generator).tolist()
    samples = [Sample(torch.full((n,), index), torch.full((n,), index), (index,)) for index, n in enumerate(lengths)]
    packed = pack(samples, 16, pad_id=99)
    assert sorted(packed.order) == list(range(40)) and packed.kept == packed.order
    assert len(packed.input_ids) <= 1.25 * sum(lengths) / 16 + 1
    read = []
    for ids, labels, positions, documents in zip(*packed[:4], strict=True):
        for document in range(int(documents.max()) + 1):
            where = (documents == document).nonzero().flatten()
            index = int(ids[where[0]])
            read.append(index)
            assert ids[where].tolist() == [index] * lengths[index]
            assert labels[where].tolist() == [IGNORED] + [index] * (lengths[index] - 1)
            assert positions[where].tolist() == list(range(lengths[index]))
        empty = documents == -1
        assert (ids[empty] == 99).all() and (labels[empty] == IGNORED).all()
    assert tuple(read) == packed.order


def test_a_sample_longer_than_a_row_is_an_error():
    with pytest.raises(ValueError, match="a sample of 5 tokens does not fit into a row of 4"):
        pack([expand(*text(1, 2, 3, 4, 60), [])], 4, 0)
