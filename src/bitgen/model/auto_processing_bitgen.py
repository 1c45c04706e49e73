"""The processor of an export: what ``AutoProcessor`` and ``AutoImageProcessor`` load.

Pixels are made by :class:`BitGenProcessor`, the same code as in training. Text comes as a causal language model reads
it: BOS before, nothing after, so that the model can go on writing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin
from transformers.dynamic_module_utils import custom_object_save
from transformers.image_processing_base import ImageProcessingMixin

from .image_decoding import ImageSource
from .image_settings import IMAGENET_MEAN, IMAGENET_STD
from .processing_bitgen import MAX_IMAGE_PIXELS, BitGenProcessor

if TYPE_CHECKING:
    # As in causal_lm_bitgen.py: transformers 4 finds the files that this one names.
    from .token_ids import text_ids as text_ids

IMAGE_TOKEN = "<image>"
PROCESSOR_FILE, IMAGE_PROCESSOR_FILE = "processor_config.json", "preprocessor_config.json"
# What says where and how to look a file up, and so goes to every part of a processor.
_LOOK_UP = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

Text = str | Sequence[str] | Sequence[tuple[str, str]]


class BitGenImageProcessor(ImageProcessingMixin):
    """Images to ``pixel_values``, float32 ``[B, 3, size, size]``: the whole image, resized and normalised."""

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        image_resample: str = "bicubic",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_image_pixels = max_image_pixels
        self.image_resample = image_resample
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    @property
    def normalisation(self) -> dict[str, Any]:
        """As of the model's configuration."""
        return {name: getattr(self, name) for name in ("image_mean", "image_std", "image_resample")}

    def __call__(self, images: ImageSource | Sequence[ImageSource], return_tensors: str | None = "pt") -> BatchFeature:
        """One PIL image (or encoded bytes) or several; ``ValueError`` names the one that cannot be read."""
        most = self.max_image_pixels
        pixels = BitGenProcessor(None, self.image_size, max_image_pixels=most, **self.normalisation)
        several: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        return BatchFeature({"pixel_values": pixels.images(several)}, tensor_type=return_tensors)


class BitGenAutoProcessor(ProcessorMixin):
    """Text, images or both to model inputs.

    Args:
        image_processor: None for a model that takes features computed earlier.
        tokenizer: a fast one, whose template puts BOS first.
    """

    attributes = ["image_processor", "tokenizer"]  # transformers 4 asks here

    def __init__(self, image_processor: BitGenImageProcessor | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = None
        # By name only: it stands where an image belongs and is taken out of the text, so it needs no embedding.
        tokenizer.image_token = IMAGE_TOKEN

    def __call__(
        self,
        text: Text | None = None,
        images: ImageSource | Sequence[ImageSource] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """``input_ids, attention_mask`` of text (``kwargs`` go to the tokenizer), ``pixel_values`` of images.

        A single text gives flat lists, unless ``return_tensors`` asks for tensors; several give lists of lists. Pairs
        of texts are tuples. ``<image>`` is taken out, with one space after it. With images, ``token_type_ids`` (zeros)
        come along for programs that expect them.

        Raises:
            ValueError: neither text nor images, an image that cannot be read, or images for a model without a tower.
        """
        if text is None and images is None:
            raise ValueError("nothing to process: pass text, images or both")
        inputs: dict[str, Any] = {}
        if text is not None:
            encoded = self.tokenizer(
                _without_image_token(text), return_tensors=return_tensors, return_token_type_ids=False, **kwargs
            )
            inputs.update(encoded)
        if images is not None:
            if self.image_processor is None:
                raise ValueError(
                    "This model was trained on features computed earlier and has no vision tower: compute features as "
                    "its training data were and pass them to the model as vision_features [B, P, C]."
                )
            if text is not None:
                inputs["token_type_ids"] = _zeros_like(inputs["input_ids"])
            inputs["pixel_values"] = self.image_processor(images, return_tensors or "pt")["pixel_values"]
        return BatchFeature(inputs, tensor_type=None)

    @property
    def model_input_names(self) -> list[str]:
        """The inputs that come of text, and of images where the model sees them."""
        return ["input_ids", "attention_mask", *(["pixel_values"] if self.image_processor is not None else [])]

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """The tokenizer's ``decode``."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's ``batch_decode``."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    # ---------------------------------------------------------------- files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> BitGenAutoProcessor:
        """Load from a folder or the hub; what is not about finding files (``padding_side``) goes to the tokenizer.

        Raises:
            OSError: a part is missing, the image processor of a model that sees included.
        """
        source = str(pretrained_model_name_or_path)
        for name in ("_from_auto", "trust_remote_code"):
            kwargs.pop(name, None)
        where = {name: kwargs[name] for name in _LOOK_UP if kwargs.get(name) is not None}
        settings, _ = cls.get_processor_dict(source, **where)
        # AutoTokenizer would ask whether to trust the folder's code, which a tokenizer does not need.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, **kwargs)
        image_processor = None
        if not settings.get("takes_features", False):
            try:
                image_processor = BitGenImageProcessor.from_pretrained(source, **where)
            except OSError as error:
                raise OSError(
                    f"{source} has no image processor: {IMAGE_PROCESSOR_FILE} is missing or damaged ({error}). Export "
                    "the model again, or put that file back."
                ) from error
        return cls(image_processor, tokenizer)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Write tokenizer, image processor and ``processor_config.json``; the code too, where it was loaded as such."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written = list(self.tokenizer.save_pretrained(str(folder)))
        auto_map = {"AutoProcessor": "auto_processing_bitgen.BitGenAutoProcessor"}
        if self.image_processor is not None:
            image_map = auto_map | {"AutoImageProcessor": "auto_processing_bitgen.BitGenImageProcessor"}
            settings = {
                "image_processor_type": "BitGenImageProcessor",
                "processor_class": "BitGenAutoProcessor",
                "auto_map": image_map,
                "image_size": self.image_processor.image_size,
                "image_mean": self.image_processor.image_mean,
                "image_std": self.image_processor.image_std,
                "image_resample": self.image_processor.image_resample,
                "max_image_pixels": self.image_processor.max_image_pixels,
            }
            written.append(_write_json(folder / IMAGE_PROCESSOR_FILE, settings))
        settings = {
            "processor_class": "BitGenAutoProcessor",
            "auto_map": auto_map,
            "takes_features": self.image_processor is None,
        }
        written.append(_write_json(folder / PROCESSOR_FILE, settings))
        if self._auto_class is not None:
            written += [str(path) for path in custom_object_save(self, folder)]
        return written


def _write_json(path: Path, content: dict[str, Any]) -> str:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return str(path)


def _without_image_token(text: Any) -> Any:
    if isinstance(text, str):
        return text.replace(IMAGE_TOKEN + " ", "").replace(IMAGE_TOKEN, "")
    return type(text)(_without_image_token(part) for part in text)


def _zeros_like(input_ids: Any) -> Any:
    if hasattr(input_ids, "shape"):  # a tensor or an array
        return input_ids * 0
    return [_zeros_like(part) if isinstance(part, list) else 0 for part in input_ids]
