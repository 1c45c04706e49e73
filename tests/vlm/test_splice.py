"""The splice against the original's numbers, from record to embeddings; places for visuals, and packing."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bitgen.data.conversations.dataset import ConversationDataset, VisualCollator
from bitgen.data.conversations.records import Conversation, Turn
from bitgen.model.likelihood import IGNORED
from bitgen.vlm.modeling import VisionLanguageModel
from bitgen.vlm.splice import IMAGE_ID, Sample, expand, pack, splice
from bitgen.vlm.vision import StoredFeatures


@pytest.fixture
def fixture(shared_data):
    path = shared_data / "connector_fixtures" / "llava_splice_a.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the real data")
    return load_file(path)


class _Records:
    """The fixture's rows as conversations about stored features; their one turn names the row.

    In the original a text without a picture takes one that it does not show; here it comes without one.
    """

    def __init__(self, fixture):
        self.feature_shape, self.conversations = tuple(fixture["image_features"].shape[1:]), []
        features = list(fixture["image_features"])
        for row, ids in enumerate(fixture["input_ids"]):
            own = [[features.pop(0)] for _ in range(max(int((ids == IMAGE_ID).sum()), 1))]
            shown = own if IMAGE_ID in ids else []
            turns = [Turn("user", str(row) + "<image>" * len(shown)), Turn("assistant", "")]
            self.conversations.append(Conversation(str(row), shown, turns))
        assert not features

    def __len__(self):
        return len(self.conversations)

    def __getitem__(self, key):
        return self.conversations[key[0]]

    def text(self, index):
        return self.conversations[index]

    def record_name(self, index):
        return f"row {index}"


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
@pytest.mark.parametrize("most", [None, 9])
def test_the_originals_embeddings_labels_and_masks_come_out(fixture, side, most):
    records = _Records(fixture)

    def encode(turns, lengths):
        row = int(turns[0].text.split("<")[0])
        real = fixture["attention_mask"][row].bool()
        return expand(fixture["input_ids"][row][real], fixture["labels"][row][real], lengths)

    data = ConversationDataset(records, encode, lambda frames: records.feature_shape[0], None, most or 2048)
    batch = VisualCollator(0, side)([data[row] for row in range(len(data))])
    model = VisionLanguageModel(StoredFeatures(*records.feature_shape), _AsTheyAre(), _Table(fixture["table"]))
    name = f"{side}_max{most}" if most else side
    assert torch.equal(batch["labels"], fixture[f"{name}_labels"])
    assert torch.equal(batch["attention_mask"], fixture[f"{name}_mask"])
    real = fixture[f"{name}_mask"].bool()
    torch.testing.assert_close(model.embed(batch)[real], fixture[f"{name}_embeds"][real], atol=1e-6, rtol=0)
    assert batch["truncated"].tolist() == ([0, 1, 0] if most else [0, 0, 0])


def test_each_visual_takes_its_own_number_of_places():
    ids = torch.tensor([1, IMAGE_ID, 5, IMAGE_ID, 60, 61])
    sample = expand(ids, torch.where(ids > 50, ids, IGNORED), [2, 3])
    assert sample.ids.tolist() == [1, *[IMAGE_ID] * 2, 5, *[IMAGE_ID] * 3, 60, 61]
    assert sample.labels.tolist() == [*[IGNORED] * 7, 60, 61]


def test_visuals_that_the_text_does_not_have_are_an_error():
    with pytest.raises(ValueError, match="the text has 1 places for visuals and 2 visuals are given"):
        expand(torch.tensor([1, IMAGE_ID, 60]), torch.full((3,), IGNORED), [2, 2])


def test_gradients_reach_the_tokens_of_visuals_and_of_text_that_are_used():
    ids = torch.tensor([[1, IMAGE_ID, IMAGE_ID, 5], [IMAGE_ID, 7, 5, 0]])
    embedding, tokens = nn.Embedding(9, 4), torch.randn(3, 4, requires_grad=True)
    embeds = splice(embedding(ids.clamp(min=0)), ids, tokens)
    text = embedding(torch.tensor([1, 5, 7, 5, 0]))
    expected = torch.stack([text[0], tokens[0], tokens[1], text[1], tokens[2], text[2], text[3], text[4]])
    assert torch.equal(embeds.flatten(0, 1), expected)
    embeds.sum().backward()
    assert torch.equal(tokens.grad, torch.ones(3, 4))
    assert embedding.weight.grad[:, 0].tolist() == [1, 1, 0, 0, 0, 2, 0, 1, 0]  # 0 once: as the padding, not for places


def test_packed_rows_hold_every_sample_once_and_whole():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (40,), generator=generator).tolist()
    samples = [Sample(torch.full((n,), index), torch.full((n,), index)) for index, n in enumerate(lengths)]
    packed = pack(samples, 16, pad_id=99)
    assert sorted(packed.order) == list(range(40))
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
        pack([Sample(torch.arange(5), torch.arange(5))], 4, 0)
