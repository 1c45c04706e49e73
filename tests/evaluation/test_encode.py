import functools

import pytest
import torch

from bitgen.evaluation.encode import Runner
from bitgen.evaluation.matching import score_candidates
from bitgen.evaluation.memory_metrics import memory_metrics, read_split
from bitgen.evaluation.retrieval import rank_split
from bitgen.evaluation.validation import validate
from support.models import tiny_model
from support.splits import FeatureSplit


@pytest.fixture(scope="module")
def dataset() -> FeatureSplit:
    return FeatureSplit()


build = functools.partial(tiny_model, max_seq_len=16)


@pytest.mark.parametrize("itm_likelihood", [False, True])
def test_every_caption_and_pair_is_computed_as_alone(dataset, itm_likelihood):
    """Sorting by length, padding and batching must leave no trace: compare with one caption at a time."""
    model = build(itm_likelihood=itm_likelihood).eval()
    with torch.no_grad():
        model.itm_head.weight[1] += 0.5  # the weight of a likelihood starts at 0
    encoded = Runner(model, batch_size=4).encode(dataset)
    texts = torch.tensor([0, 7, 7, 20, 3])
    images = torch.tensor([5, 0, 10, 2, 3])
    scores = Runner(model, batch_size=3).match(encoded, texts, images)
    with torch.no_grad():
        for caption, ids in enumerate(dataset.captions):
            alone = model.encode_text(ids[None], torch.ones(1, len(ids), dtype=torch.int64))[0]
            assert torch.allclose(encoded.text_features[caption], alone, atol=1e-5)
        for row in range(dataset.image_count):
            alone = model.encode_image(vision_features=dataset.features[row : row + 1])
            assert torch.allclose(encoded.image_features[row], alone.image_features[0], atol=1e-5)
        for text, image, score in zip(texts, images, scores, strict=True):
            ids = dataset.captions[text]
            tokens = model.encode_image(vision_features=dataset.features[image][None]).image_tokens
            logits = model.match(model.pool_image_tokens(tokens), ids[None], torch.ones(1, len(ids)).long())[0]
            assert score == pytest.approx((logits[1] - logits[0]).item(), abs=2e-3)
    assert scores[1] != scores[2], "the image must matter to the matching score"
    assert encoded.caption_image.tolist() == dataset.owner


def test_the_likelihood_is_discounted_for_cosine_in_hard_pairs_and_orders_alone(dataset):
    model = build(itm_likelihood=True).eval()
    with torch.no_grad():
        model.itm_head.weight.copy_(torch.tensor([[0.1, 0.3], [0.3, -0.2]]))
        model.itm_head.bias.copy_(torch.tensor([0.0, 0.5]))
    runner = Runner(model, batch_size=3)
    encoded = runner.encode(dataset)
    texts, images = torch.tensor([0, 7, 7, 20, 3]), torch.tensor([5, 0, 10, 2, 3])
    evidence = runner.text_evidence(encoded, texts, images)
    cosines = (encoded.text_features[texts] * encoded.image_features[images]).sum(dim=1)
    expected = 0.2 * evidence + 0.5 - 0.5 * (cosines - 0.5) / 0.02
    torch.testing.assert_close(runner.match(encoded, texts, images), expected, rtol=0, atol=0.1)  # of rounded tokens
    ranking = rank_split(encoded, top_k=3)
    scores, _ = score_candidates(runner, encoded, ranking)
    every = torch.arange(encoded.num_texts).repeat_interleave(3)
    expected = runner.text_evidence(encoded, every, ranking.text_candidates.flatten())
    torch.testing.assert_close(scores.flatten(), expected, rtol=1e-4, atol=1e-4)


def test_batch_size_workers_and_max_images_change_nothing_else(dataset):
    model = build()
    whole = Runner(model, batch_size=64).encode(dataset)
    parts = Runner(model, batch_size=2, num_workers=1).encode(dataset)
    assert torch.allclose(whole.image_features, parts.image_features, atol=1e-5)
    assert torch.allclose(whole.text_features, parts.text_features, atol=1e-5)
    some = Runner(model).encode(dataset, max_images=4)
    assert some.num_images == 4 and some.num_texts == sum([1, 2, 3, 1])
    assert torch.allclose(some.text_features, whole.text_features[: some.num_texts], atol=1e-5)


@pytest.mark.parametrize("itm_likelihood", [False, True])
def test_validating_leaves_the_model_and_the_random_state_as_they_were(dataset, itm_likelihood):
    model = build(itm_likelihood=itm_likelihood).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    result = validate(model, dataset, temperature=0.07, batch_size=4, num_workers=1)
    assert model.training and model.memory.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = validate(model, dataset, temperature=0.07, batch_size=4)
    assert again.scalars == pytest.approx(result.scalars)


def test_validation_names_what_the_monitor_shows(dataset):
    scalars = validate(build(), dataset, temperature=0.07).scalars
    recalls = {f"val/{way}_R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    losses = {f"val/{name}" for name in ("contrastive_loss", "acc_i2t", "acc_t2i", "itm_loss", "itm_acc")}
    assert recalls | losses | {"val/memory_utilization", "val/memory_quality"} <= set(scalars)
    assert all(0 <= scalars[name] <= 100 for name in recalls)
    assert all(0 <= scalars[name] <= 1 for name in losses if "acc" in name)
    without = validate(build(use_memory=False), dataset).scalars
    assert not any("memory" in name or "contrastive" in name for name in without)


@pytest.mark.parametrize("itm_likelihood", [False, True])
def test_the_matching_sample_keeps_partners_from_the_whole_split(dataset, itm_likelihood):
    """With few images sampled, the scores must be those of the same pairs in the full evaluation."""
    model = build(itm_likelihood=itm_likelihood)
    torch.nn.init.normal_(model.itm_head.weight)
    everything = validate(model, dataset, itm_images=dataset.image_count)
    same = validate(model, dataset, itm_images=1000)
    few = validate(model, dataset, itm_images=2)
    assert everything.scalars["val/itm_loss"] == pytest.approx(same.scalars["val/itm_loss"])
    # Two images: rows 0 and 10, with 1 + 2 captions; 3 true pairs, 3 hard images, 2 hard captions.
    encoded, ranking = few.encoded, rank_split(few.encoded)
    texts = torch.tensor([0, 19, 20])
    assert encoded.caption_image[texts].tolist() == [0, 10, 10]
    runner = Runner(model)
    true = runner.match(encoded, texts, encoded.caption_image[texts])
    hard = torch.cat(
        [
            runner.match(encoded, texts, ranking.hardest_image[texts]),
            runner.match(encoded, ranking.hardest_text[[0, 10]], torch.tensor([0, 10])),
        ]
    )
    softplus = torch.nn.functional.softplus
    # The cross-entropy of a true pair is softplus(-logit), of a hard one softplus(logit).
    expected = (softplus(-true).mean() + softplus(hard).mean()) / 2
    assert few.scalars["val/itm_loss"] == pytest.approx(expected.item())
    assert few.scalars["val/itm_loss"] != pytest.approx(everything.scalars["val/itm_loss"])
    accuracy = ((true > 0).double().mean() + (hard <= 0).double().mean()) / 2
    assert few.scalars["val/itm_acc"] == pytest.approx(accuracy.item())


def test_memory_figures(dataset):
    model = build()
    runner = Runner(model, batch_size=4)
    encoded = runner.encode(dataset)
    usage, codes = read_split(runner, encoded)
    # The definition, one caption at a time.
    total, positions = torch.zeros(4), 0
    model.eval()
    with torch.no_grad():
        for caption, ids in enumerate(dataset.captions):
            tokens = encoded.image_tokens[encoded.caption_image[caption]][None].float()
            fused = model.run_stack(ids[None], torch.ones(1, len(ids)).long(), tokens)
            total += fused.read_weights.square().sum(dim=(0, 1))
            positions += len(ids)
            assert torch.allclose(codes[caption], fused.codes[0], atol=1e-4)
    assert torch.allclose(usage, total / positions, rtol=1e-4)
    share = total / total.sum()
    metrics = memory_metrics(runner, encoded)
    expected = 100 * (-(share * share.log()).sum()).exp() / 4
    assert metrics["memory_utilization"] == pytest.approx(expected.item(), rel=1e-4)
    # Four slots hold four codes of width 16, and recall others badly.
    assert metrics["memory_quality"] > metrics["memory_quality_unwritten"]
    assert metrics["memory_quality"] <= 100


def test_memory_figures_need_a_memory(dataset):
    runner = Runner(build(use_memory=False))
    with pytest.raises(ValueError, match="use_memory"):
        memory_metrics(runner, runner.encode(dataset))


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="no images"):
        Runner(build()).encode(FeatureSplit(image_count=0))
