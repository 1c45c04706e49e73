"""``pipeline("image-text-to-text")`` of an export: transformers' own, for a model that also writes unprompted."""

from __future__ import annotations

import os
from typing import Any

from transformers import ImageTextToTextPipeline
from transformers.image_utils import valid_images


class BitGenImageTextToTextPipeline(ImageTextToTextPipeline):
    """Images, each with the text that its caption begins with or without one, to captions."""

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """As transformers' own. Images alone are described from the beginning; a string among them names a file or an
        address, where transformers would take it for a text."""
        several = list(images) if isinstance(images, (list, tuple)) else [images]
        named = [isinstance(one, (str, os.PathLike)) for one in several]
        if images is not None and text is None and (all(named) or valid_images(images)):
            several = [os.fspath(one) if is_name else one for one, is_name in zip(several, named, strict=True)]
            images, text = (several, [""] * len(several)) if isinstance(images, (list, tuple)) else (several[0], "")
        return super().__call__(images, text, **kwargs)

    def preprocess(self, inputs: Any = None, **kwargs: Any) -> Any:
        """As transformers' own; texts of different lengths are padded before, so that all go on from their end."""
        return super().preprocess(inputs, **{"padding_side": "left", **kwargs})

    def check_model_type(self, supported_models: Any) -> None:
        """Nothing: what is asked here is whether transformers itself brings the model."""
