"""Pictures: their form, and that what they say is in the pixels."""

import pytest
import torch
from PIL import Image

from bitgen.model.processing_bitgen import BitGenProcessor
from bitgen.show import pictures
from bitgen.show.drawing import RIGHT, WRONG, to_picture

GREEN, RED = ([int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (RIGHT, WRONG))


def count_pixels(picture: torch.Tensor, colour: list[int]) -> int:
    return int((picture == torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)).all(dim=0).sum())


def split_of(pairs: int, per_image: int = 2, shuffled: bool = False):
    """Orthogonal images, each with `per_image` captions that equal it (or, shuffled, equal its neighbour)."""
    image_features = torch.eye(pairs)
    caption_image = torch.arange(pairs).repeat_interleave(per_image)
    text_features = image_features[caption_image]
    if shuffled:
        caption_image = (caption_image + 1) % pairs
    captions = [f"caption {i} costs $5 and $6" for i in range(len(caption_image))]
    return image_features, text_features, caption_image, captions


def is_picture(picture: torch.Tensor) -> bool:
    return picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[0] == 3 and picture.is_contiguous()


def test_retrieval_pictures_have_the_form_tensorboard_takes():
    drawn = pictures.retrieval_pictures(*split_of(8), image_of=lambda row: torch.zeros(3, 10, 20, dtype=torch.uint8))
    assert set(drawn) == {"retrieval/text_to_image", "retrieval/image_to_text", "retrieval/similarity"}
    assert all(is_picture(picture) for picture in drawn.values())


def test_frames_are_green_where_right_and_red_where_wrong():
    images = {"image_of": lambda row: torch.zeros(3, 8, 8, dtype=torch.uint8), "num_queries": 3, "top_k": 1}
    right = pictures.retrieval_pictures(*split_of(6), **images)
    wrong = pictures.retrieval_pictures(*split_of(6, shuffled=True), **images)
    for name in ("retrieval/text_to_image", "retrieval/image_to_text"):
        assert count_pixels(right[name], RED) == 0
        assert count_pixels(wrong[name], RED) > 50
        assert count_pixels(right[name], GREEN) > 50


def test_re_ranking_is_drawn_before_and_after_with_the_right_image_green():
    cosines = torch.tensor([0.2, 0.9, 0.5])
    example = ("a caption", torch.tensor([1, 2, 0]), torch.tensor([2, 1, 0]), cosines)
    drawn = pictures.reranking_panel([example], lambda row: torch.full((3, 8, 8), 90 * row, dtype=torch.uint8), top_k=1)
    assert is_picture(drawn)
    # Two rows, of which the first shows image 1 (wrong) and the second image 2 (right).
    first, second = drawn[:, 46:230], drawn[:, 242:]
    assert count_pixels(first, RED) > 50 and count_pixels(second, GREEN) > 50
    assert count_pixels(second, RED) == 0


def test_features_and_missing_images_get_grey_tiles():
    for image_of in (lambda row: torch.randn(49, 320), lambda row: None):
        drawn = pictures.retrieval_pictures(*split_of(5), image_of=image_of)
        assert count_pixels(drawn["retrieval/text_to_image"], [0xD1, 0xD5, 0xDB]) > 10_000


def test_tiny_splits_are_drawn():
    drawn = pictures.retrieval_pictures(*split_of(1, per_image=1), image_of=lambda row: None)
    assert all(is_picture(picture) for picture in drawn.values())


def test_captions_in_any_script_neither_fail_nor_warn(recwarn):
    image_features, text_features, caption_image, captions = split_of(4)
    captions[0] = r"$\frac{1}{2$ [bold] 猫 " + "x" * 500
    pictures.retrieval_pictures(image_features, text_features, caption_image, captions, image_of=lambda row: None)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_same_input_same_picture():
    one, two = (pictures.slot_similarity(torch.arange(12.0).view(4, 3)) for _ in range(2))
    assert torch.equal(one, two)


def test_right_rank_counts_ties_against_the_model():
    assert pictures._rank(torch.tensor([0.9, 0.5, 0.5, 0.1]), 2) == 3


@pytest.mark.parametrize("normalised_by", [{}, {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}])
def test_what_the_model_sees_is_shown_in_the_colours_of_the_file(normalised_by):
    """Whatever the encoder was trained on: CLIP's and SigLIP's means are not ImageNet's."""
    pixels = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    processor = BitGenProcessor(None, image_size=8, **normalised_by)
    shown = to_picture(processor.picture(processor.image(Image.fromarray(pixels.permute(1, 2, 0).numpy()))))
    assert (shown == pixels.permute(1, 2, 0).numpy()).all()
    assert (to_picture(pixels) == shown).all()
    assert to_picture(torch.randn(49, 320)) is None


@pytest.mark.parametrize("usage", [torch.rand(8), torch.rand(1, 8), torch.rand(30, 8), torch.zeros(2, 8)])
def test_slot_usage_takes_one_row_or_many(usage):
    labels = [str(i) for i in range(len(usage))] if usage.ndim == 2 else None
    assert is_picture(pictures.slot_usage(usage, labels, "step"))


def test_similarity_matrix_differs_when_the_model_does():
    learned, chance = pictures.similarity_matrix(torch.eye(8)), pictures.similarity_matrix(torch.eye(8).roll(1, 0))
    assert is_picture(learned)
    assert not torch.equal(learned, chance)


def test_drawing_leaves_no_figure_open():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    pictures.similarity_matrix(torch.eye(4))
    pictures.slot_usage(torch.rand(4))
    assert pyplot.get_fignums() == before
