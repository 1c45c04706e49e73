"""The sizes and choices that define a BitGen network; nothing about how it is trained."""

from __future__ import annotations

import inspect
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

from .image_settings import IMAGENET_MEAN, IMAGENET_STD, check_image_settings
from .vision_towers import check_vision_config

FUSION_KINDS = ("concat_mlp", "cross_attention", "backbone")
IMAGE_POOLINGS = ("attention", "mean")
VISION_TUNINGS = ("frozen", "lora", "full")
ITM_POOLINGS = ("mean", "last")
POSITION_KINDS = ("learned", "rope")
FEED_FORWARDS = ("gelu", "swiglu")
# In the queue and in every matching pass, image tokens are pooled to at most this many a side.
MAX_POOLED_GRID = 7


def check_heads(heads: int, width: int, names: tuple[str, str] = ("num_heads", "embed_dim")) -> None:
    """Raise ``ValueError`` where attention heads do not divide the width; ``names`` of the two, for the message."""
    if width % heads:
        best = min((count for count in range(1, width + 1) if width % count == 0), key=lambda count: abs(count - heads))
        raise ValueError(f"{names[0]} is {heads}, which does not divide {names[1]} {width}. Write {best}.")


def check_patches(image_size: int, patch_size: int, name: str) -> None:
    """Raise ``ValueError`` where an image is no whole number of patches a side; ``name`` of the patch size."""
    if image_size % patch_size:
        fitting = max(1, round(image_size / patch_size)) * patch_size
        raise ValueError(f"image_size is {image_size}, which is no multiple of {name} {patch_size}. Write {fitting}.")


def check_sizes(embed_dim: int, num_heads: int, vision_embed_dim: int, positions: str) -> None:
    """Raise ``ValueError`` where the sizes of the text stack and of the image tokens do not fit together."""
    check_heads(num_heads, embed_dim)
    if positions == "rope" and embed_dim // num_heads % 2:
        raise ValueError(
            f"positions is rope, which turns pairs of channels, but embed_dim {embed_dim} and num_heads {num_heads} "
            f"make heads of {embed_dim // num_heads}. Choose sizes that make it even, or write positions learned."
        )
    if vision_embed_dim != embed_dim:
        raise ValueError(
            f"vision_embed_dim is {vision_embed_dim} and embed_dim {embed_dim}, but image and text tokens meet in one "
            f"attention. Write vision_embed_dim {embed_dim}."
        )


# As phones and word processors write them, which byte-level tokenizers take apart like letters that they never read.
_PLAIN = dict.fromkeys("\u2018\u2019\u201a\u2032\u02bc\u2039\u203a", "'") | dict.fromkeys(
    "\u201c\u201d\u201e\u00ab\u00bb", '"'
)
_PLAIN |= dict.fromkeys("\u2010\u2011\u2012\u2013\u2014", "-") | {"\u2026": "..."}


def plain_marks(text: str) -> str:
    """A text with the marks of a keyboard in place of curly quotes, long dashes and ellipses."""
    return "".join(_PLAIN.get(mark, mark) for mark in text)


class BitGenConfig(PretrainedConfig):
    """Configuration of :class:`BitGenModel`.

    Args:
        vision_config: the tower's configuration as a dict (see ``vision_towers`` for the kinds that fit), or None when
            the model takes features computed earlier.
        image_size: side of the square input in pixels (the tower interpolates its position table when it differs).
        image_mean, image_std, image_resample: how pixels are resized and normalised, as the tower was taught to see;
            the defaults are those of every model from before there was a choice.
        feature_dim, feature_tokens: C and P of features computed earlier; required when ``vision_config`` is None.
        feature_pool: side of the grid that the tower's patch features are averaged to before the compressor; None (or
            a side that is not smaller): as the tower gives them.
        vision_tuning: what phase 2 trains of the tower: ``frozen`` nothing, ``lora`` adapters, ``full`` every weight.
        lora_layers: indices of the adapted layers, or None for all of them.
        embed_dim (D), vision_embed_dim: text and image token width; they must be equal, since both meet in attention.
        positions: ``learned`` (a table of max_seq_len rows) | ``rope`` (rotary attention, no parameters).
        feed_forward: ``gelu`` | ``swiglu``, which has 1.5 times the parameters at equal ``ffn_dim``.
        itm_likelihood: matching reads how much likelier the image makes the caption and the cosine, not the last token.
        compressor_convolutions: 3 x 3 convolutions over the grid of image tokens after the compressor.
        pooled_grid: side of the grid that image tokens are averaged to at most, in the queue and wherever text meets
            them.
        itm_pooling: of the fused states, what the matching head reads: ``last`` (the last token's) | ``mean`` (over all
            words).
        gate_start: of the fusion's gates before training: 0 keeps images out at first, 1 lets them in.
        fusion: ``concat_mlp`` | ``cross_attention`` | ``backbone`` (FIBER, arXiv 2206.07643, section 3).
        memory_size (K), memory_dim (C): slots and code width of the episodic memory (Larimar, arXiv 2403.11901).
        recall_tokens (L), recall_dim (k), recall_code (d): tokens of a text that can be taught, 0: the network cannot
            speak from a memory; width of a key; and numbers that a token of a value has (``recall.py``).
        recall_space: id of the space before a name, where it is a token of its own (``token_ids.space_id``).
        recall_behind_space: a text is encoded behind a space when it is taught. Its first word then has the tokens that
            it has inside other texts (``token_ids.begins_behind_space``).
        recall_words: what each token of the tokenizer is of a word, a digit for each id (``token_ids.words_of``); later
            ids, as of tokens that were added since, are no part of words.

    Raises:
        ValueError: sizes that cannot fit together, naming the field.
    """

    model_type = "bitgen"
    # The names under which transformers' cache and the BabyLM evaluation look for these sizes.
    attribute_map = {
        "hidden_size": "embed_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_seq_len",
    }

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        image_size: int = 224,
        image_mean: Sequence[float] = IMAGENET_MEAN,
        image_std: Sequence[float] = IMAGENET_STD,
        image_resample: str = "bicubic",
        feature_dim: int | None = None,
        feature_tokens: int | None = None,
        feature_pool: int | None = None,
        vision_tuning: str = "lora",
        lora_rank: int = 16,
        lora_alpha: int = 32,
        lora_dropout: float = 0.1,
        use_dora: bool = False,
        use_rslora: bool = False,
        init_lora_weights: bool | str = True,
        lora_layers: list[int] | None = None,
        use_gradient_checkpointing: bool = False,
        embed_dim: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        ffn_dim: int = 256,
        vision_embed_dim: int = 128,
        compressor_dim: int = 384,
        compressor_dropout: float = 0.1,
        compressor_convolutions: int = 0,
        pooled_grid: int = MAX_POOLED_GRID,
        vocab_size: int = 50257,
        max_seq_len: int = 256,
        positions: str = "learned",
        feed_forward: str = "gelu",
        fusion: str = "backbone",
        image_pooling: str = "attention",
        itm_likelihood: bool = False,
        itm_pooling: str = "last",
        gate_start: float = 0.0,
        dropout: float = 0.1,
        use_memory: bool = True,
        memory_size: int = 32,
        memory_dim: int = 128,
        direct_writing: bool = True,
        memory_sigma: float = 1.0,
        pseudoinverse_steps: int = 30,
        pseudoinverse_tolerance: float = 1e-5,
        recall_tokens: int = 0,
        recall_dim: int = 128,
        recall_code: int = 32,
        recall_space: int | None = None,
        recall_behind_space: bool = False,
        recall_words: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = dict(vision_config) if vision_config is not None else None
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.image_resample = image_resample
        self.feature_dim = feature_dim
        self.feature_tokens = feature_tokens
        self.feature_pool = feature_pool
        self.vision_tuning = vision_tuning
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_dropout = lora_dropout
        self.use_dora = use_dora
        self.use_rslora = use_rslora
        self.init_lora_weights = init_lora_weights
        self.lora_layers = lora_layers
        self.use_gradient_checkpointing = use_gradient_checkpointing
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.vision_embed_dim = vision_embed_dim
        self.compressor_dim = compressor_dim
        self.compressor_dropout = compressor_dropout
        self.compressor_convolutions = compressor_convolutions
        self.pooled_grid = pooled_grid
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.positions = positions
        self.feed_forward = feed_forward
        self.fusion = fusion
        self.image_pooling = image_pooling
        self.itm_likelihood = itm_likelihood
        self.itm_pooling = itm_pooling
        self.gate_start = gate_start
        self.dropout = dropout
        self.use_memory = use_memory
        self.memory_size = memory_size
        self.memory_dim = memory_dim
        self.direct_writing = direct_writing
        self.memory_sigma = memory_sigma
        self.pseudoinverse_steps = pseudoinverse_steps
        self.pseudoinverse_tolerance = pseudoinverse_tolerance
        self.recall_tokens, self.recall_dim, self.recall_code = recall_tokens, recall_dim, recall_code
        self.recall_space, self.recall_behind_space = recall_space, recall_behind_space
        self.recall_words = recall_words
        super().__init__(**kwargs)
        self._check()

    def as_taught(self, text: str) -> str:
        """A text as it is encoded to be taught: composed Unicode, plain marks, and one plain space between words."""
        text = " ".join(plain_marks(unicodedata.normalize("NFC", text)).split())
        return f" {text}" if self.recall_behind_space else text

    @classmethod
    def own_names(cls) -> set[str]:
        """Names of the arguments above; settings of a run that bear them are passed on as they are."""
        return set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}

    @property
    def normalisation(self) -> dict[str, Any]:
        """What a processor must know beside the image size, by its arguments' names."""
        return {name: getattr(self, name) for name in ("image_mean", "image_std", "image_resample")}

    @property
    def takes_features(self) -> bool:
        """Whether images arrive as features computed earlier, with no tower in the model."""
        return self.vision_config is None and self.feature_dim is not None

    @property
    def vision_feature_dim(self) -> int:
        """Width C of one patch feature, before the compressor."""
        if self.vision_config is not None:
            return self.vision_config["hidden_size"]
        assert self.feature_dim is not None
        return self.feature_dim

    @property
    def tower_grid(self) -> int | None:
        """Side of the tower's own patch grid; None without a tower."""
        return None if self.vision_config is None else self.image_size // self.vision_config["patch_size"]

    @property
    def image_tokens(self) -> int:
        """P, the number of patch features an image gives to the compressor."""
        grid = self.tower_grid
        if grid is not None:
            return min(grid, self.feature_pool or grid) ** 2
        assert self.feature_tokens is not None
        return self.feature_tokens

    @property
    def pooled_tokens(self) -> int:
        """P', the number of image tokens in the queue and in every pass that fuses; at most 49 unless the configuration
        says otherwise."""
        return min(self.image_tokens, self.pooled_grid**2)

    @property
    def image_grid(self) -> int | None:
        """Side of the square patch grid, or None when the tokens form no square."""
        side = math.isqrt(self.image_tokens)
        return side if side * side == self.image_tokens else None

    def _check(self) -> None:
        if self.vision_config is None and self.feature_dim is None:
            return  # transformers builds an empty configuration to find out which values differ from the defaults
        if self.vision_config is not None:
            check_vision_config(self.vision_config)
        check_image_settings(self.image_mean, self.image_std, self.image_resample)
        if self.takes_features and not (self.feature_tokens and self.feature_tokens > 0):
            raise ValueError("feature_tokens must say how many features an image has (1 for one vector an image).")
        check_sizes(self.embed_dim, self.num_heads, self.vision_embed_dim, self.positions)
        if self.vision_config is not None:
            check_patches(self.image_size, self.vision_config["patch_size"], "patch_size")
        if self.compressor_convolutions and self.image_grid is None:
            raise ValueError(
                f"compressor_convolutions is {self.compressor_convolutions}, but an image's {self.image_tokens} "
                "features form no square grid. Write compressor_convolutions 0."
            )
        if self.recall_space is not None and not 0 <= self.recall_space < self.vocab_size:
            raise ValueError(f"recall_space={self.recall_space} is no token of a vocabulary of {self.vocab_size}.")
        words = self.recall_words
        if words is not None and not (isinstance(words, str) and words and set(words) <= set("012")):
            raise ValueError("recall_words must have a digit for each token of the tokenizer: 0, 1 or 2.")
        for name, value, allowed in (
            ("fusion", self.fusion, FUSION_KINDS),
            ("image_pooling", self.image_pooling, IMAGE_POOLINGS),
            ("itm_pooling", self.itm_pooling, ITM_POOLINGS),
            ("vision_tuning", self.vision_tuning, VISION_TUNINGS),
            ("positions", self.positions, POSITION_KINDS),
            ("feed_forward", self.feed_forward, FEED_FORWARDS),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}.")
