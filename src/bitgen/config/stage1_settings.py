"""The settings of stage 1: one dataclass a concern, each field with its range and the help text of ``--help``.

Field names are unique over all groups, so that every field is also a flat command-line flag. HfArgumentParser reads
``_argument_group_name``, the heading of a group's section in ``--help``, which is the group's name in YAML too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from bitgen.config.common import TrainingSettings
from bitgen.config.fields import (
    AtLeastOne,
    Depth,
    Few,
    NotNegative,
    Part,
    Positive,
    Range,
    Rate,
    Share,
    Size,
    WrittenAs,
    at_least_one,
    setting,
)


def _init_text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _layers_text(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(str(layer) for layer in value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _sources_text(value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(source, str) for source in value):
        return ",".join(value)
    if isinstance(value, Mapping):
        return ",".join(f"{source}:{weight}" for source, weight in value.items())
    return value


SequenceLength = Annotated[int, Range("at least 3 (BOS, a token, EOS)", lambda value: value >= 3, 2**20)]
Many = Annotated[int, at_least_one(10**7)]  # tokens, queued pairs, scenes: each takes memory


@dataclass
class VisionSettings:
    """The tower that turns images into patch features."""

    _argument_group_name = "vision"

    vision_encoder: str = setting(
        "facebook/dinov2-base",
        "What sees: a hub id or a local folder of DINOv2 (with or without registers), DINOv3 ViT, ViT, CLIP, SigLIP or "
        "SigLIP 2 of fixed resolution (whole, or the half for images), a vision transformer of timm or such a half in "
        "open_clip (BiomedCLIP; needs timm); 'random' (a DINOv2 built from the five sizes below with random weights; "
        "needs no download) or 'features' (train_data holds features computed earlier).",
    )
    vision_revision: str | None = setting(None, "Commit or tag of the hub id, to pin its weights; none: the newest.")
    vision_hidden_size: Size = setting(768, "Width of a 'random' tower; other towers declare their own.")
    vision_num_layers: Depth = setting(12, "Layers of a 'random' tower.")
    vision_num_heads: Size = setting(12, "Attention heads of a 'random' tower; must divide vision_hidden_size.")
    vision_patch_size: Size = setting(14, "Patch side in pixels of a 'random' tower; must divide image_size.")
    image_size: Size | None = setting(
        224,
        "Side in pixels that images are resized to; gives (image_size / patch)^2 image tokens. none: the size that "
        "the hub's or folder's own configuration declares.",
    )
    image_normalisation: Literal["encoder", "imagenet"] = setting(
        "encoder",
        "Mean, standard deviation and resampling of the pixels. encoder: as its preprocessor_config.json says, or "
        "where there is none, as is usual for its kind. imagenet: ImageNet's, bicubic, whatever the encoder, as in "
        "every run from before there was a choice.",
    )
    vision_tuning: Literal["frozen", "lora", "full"] = setting(
        "lora", "What phase 2 trains in the tower: nothing (frozen), LoRA adapters (lora) or every weight (full)."
    )
    use_gradient_checkpointing: bool = setting(
        False, "Recompute the tower's activations in the backward pass: about a third slower, far less memory."
    )
    compile: bool = setting(False, "Run the tower through torch.compile: slow first steps, faster ones afterwards.")
    feature_dim: Size | None = setting(
        None, "Only with 'features': width C of a feature vector; none: as the dataset declares."
    )
    feature_tokens: Size | None = setting(
        None, "Only with 'features': vectors P of an image; none: as the dataset declares."
    )
    feature_cache: str = setting(
        "off",
        "Compute the tower's features of each image once before phase 1, keep them on disk, and train phase 1 without "
        "the tower: a folder for them, 'auto' (output_dir/feature_cache, where phase 1 shows images more than once and "
        "the disk has room) or 'off'.",
    )
    feature_cache_dtype: Literal["float32", "bf16", "int8"] = setting(
        "bf16", "Numbers of the feature cache: bf16 halves float32, int8 quarters it."
    )
    feature_cache_pool: int | None = setting(
        None,
        "Side of the grid that patch features are averaged to, in both phases: 16, 8 or 7; none: the tower's own. 7 "
        "needs a fifth of the disk of 16 x 16.",
    )


@dataclass
class LoraSettings:
    """Low-rank adapters on the tower's attention (arXiv 2106.09685) and when they start to train."""

    _argument_group_name = "lora"

    lora_rank: Size = setting(16, "Rank r of the adapters: parameters grow linearly with it.")
    lora_alpha: Size = setting(32, "Adapters are scaled by alpha / r; twice the rank is usual.")
    lora_dropout: Rate = setting(0.1, "Dropout before each adapter, in training only.")
    lora_warmup_epochs: NotNegative[int] = setting(
        5, "Epochs of phase 1, in which the adapters stay frozen while the new modules settle; 0: no phase 1."
    )
    lora_warmup_steps: NotNegative[int] | None = setting(
        None, "Length of phase 1 in optimizer steps; none: lora_warmup_epochs times the steps of an epoch."
    )
    use_dora: bool = setting(False, "DoRA (arXiv 2402.09353): direction and magnitude separately; slower.")
    use_rslora: bool = setting(False, "Scale by alpha / sqrt(r), which keeps high ranks stable (arXiv 2312.03732).")
    init_lora_weights: Annotated[str, WrittenAs(_init_text)] = setting(
        "true",
        "How PEFT initialises the adapters: true (A Kaiming-uniform, B zero: the identity at the start), gaussian "
        "or false (B random too). Methods that rewrite the base weights (pissa, olora) are refused.",
    )
    lora_layers: Annotated[str, WrittenAs(_layers_text)] | None = setting(
        None, "Layers that get adapters, counted from 0 and separated by commas, as 8,9,10,11; none: all of them."
    )
    lora_lr_factor: NotNegative[float] = setting(1.0, "Learning rate of the adapters relative to learning_rate.")
    lora_plus_ratio: Positive = setting(1.0, "LoRA+ (arXiv 2402.12354): learning rate of B over that of A; 1: equal.")
    lora_lr_warmup_steps: NotNegative[int] = setting(
        100, "Steps of the adapters' own linear warm-up at the start of phase 2."
    )

    @property
    def layer_indices(self) -> list[int] | None:
        """``lora_layers`` as a list of integers; None means every layer."""
        return None if self.lora_layers is None else [int(part) for part in self.lora_layers.split(",")]

    @property
    def peft_init(self) -> bool | str:
        """``init_lora_weights`` as PEFT expects it: a bool for true and false, else the method's name."""
        return {"true": True, "false": False}.get(self.init_lora_weights, self.init_lora_weights)


@dataclass
class ModelSettings:
    """Sizes of the compressor, the text stack and the fusion."""

    _argument_group_name = "model"

    embed_dim: Size = setting(128, "Width D of the text stack and of the joint space.")
    num_layers: Depth = setting(3, "Causal blocks of the text stack.")
    num_heads: Size = setting(4, "Attention heads of a block; must divide embed_dim.")
    ffn_dim: Size = setting(256, "Hidden width of a block's feed-forward part.")
    feed_forward: Literal["gelu", "swiglu"] = setting(
        "gelu",
        "A block's feed-forward part: gelu, or swiglu (arXiv 2002.05202), which has 1.5 times the parameters at equal "
        "ffn_dim; two thirds of it make them equal.",
    )
    positions: Literal["learned", "rope"] = setting(
        "learned",
        "How the text stack knows positions: a learned table of max_seq_len rows, or rope, rotary attention (arXiv "
        "2104.09864, interleaved, base 10000), which has no parameters. max_seq_len is the context with either.",
    )
    vision_embed_dim: Size = setting(128, "Width of a compressed image token; must equal embed_dim.")
    compressor_dim: Size = setting(384, "Hidden width of the feature compressor.")
    compressor_dropout: Rate = setting(0.1, "Dropout inside the feature compressor.")
    compressor_convolutions: Few = setting(
        0,
        "3 x 3 convolutions over the grid of image tokens after the compressor, for a tower that has not learned to "
        "see what reaches across patches.",
    )
    pooled_grid: Size = setting(7, "Side of the grid that image tokens are averaged to wherever text meets them.")
    vocab_size: Many = setting(50257, "Tokens of the vocabulary; 50257 for gpt2, free with tokenizer: train.")
    max_seq_len: SequenceLength = setting(
        256, "Longest caption in tokens, BOS and EOS included; longer ones are truncated."
    )
    fusion: Literal["concat_mlp", "cross_attention", "backbone"] = setting(
        "backbone",
        "Where text meets image: concat_mlp (text tokens joined with the mean image token), cross_attention (one gated "
        "block before the text stack) or backbone (gated cross-attention in every block, as FIBER, arXiv 2206.07643).",
    )
    image_pooling: Literal["attention", "mean"] = setting(
        "attention", "How image tokens become one image vector: a learned attention over them, or their mean."
    )
    itm_likelihood: bool = setting(
        False,
        "Match by how much likelier the image makes the caption, and by the cosine that hard pairs are picked by, "
        "instead of by the words of the fused pass. Needs text_loss_weight; captions are then learned without their "
        "image too.",
    )
    itm_pooling: Literal["mean", "last"] = setting(
        "mean",
        "What the matching head reads of a caption fused with an image: the mean over its words, or the last token, "
        "which learns more slowly. Without effect where itm_likelihood is on.",
    )
    gate_start: Share = setting(
        1.0,
        "The fusion's gates before training: 1 lets images into the text stack from the start; 0 keeps them out at "
        "first, for a text stack that is trained already.",
    )
    dropout: Rate = setting(0.1, "Dropout of the text stack.")


@dataclass
class MemorySettings:
    """The episodic memory: Generative Pseudo-inverse Memory as in Larimar (arXiv 2403.11901)."""

    _argument_group_name = "memory"

    use_memory: bool = setting(True, "Build the episodic memory; without it the layer is left out.")
    memory_size: Size = setting(32, "Slots K of the memory.")
    memory_dim: Size = setting(128, "Width C of a slot.")
    memory_alpha: Share = setting(0.2, "Share of each step's posterior in the running state; 0: it never moves.")
    direct_writing: bool = setting(True, "Write an episode in one solve; False: one code at a time, same result.")
    memory_sigma: Positive = setting(
        1.0,
        "Standard deviation of the observation noise in a write, where a code element has 1. Small values make writes "
        "exact, and the KL so strong that it holds up early training (docs/lab_log.md).",
    )
    pseudoinverse_steps: Depth = setting(30, "Newton-Schulz steps at most; the original's 3 are an ablation only.")
    pseudoinverse_tolerance: Positive = setting(1e-5, "Relative residual at which the Newton-Schulz iteration stops.")


@dataclass
class ObjectiveSettings:
    """What is minimised: contrastive (ITC), matching (ITM), memory KL and language losses."""

    _argument_group_name = "objective"

    contrastive_weight: NotNegative[float] = setting(1.0, "Weight of the contrastive loss (ITC).")
    itm_weight: NotNegative[float] = setting(0.5, "Weight of the image-text matching loss on hard negatives (ITM).")
    memory_kl_weight: NotNegative[float] = setting(
        0.1, "Weight of the memory's KL divergence, posterior against prior."
    )
    text_loss_weight: NotNegative[float] = setting(
        0.0, "Weight of the language loss, on captions of images and on text_data; 0: it learns to write neither."
    )
    queue_size: Many = setting(
        4096, "Pairs kept as extra negatives; at least the global batch (batch_size x num_gpus)."
    )
    queue_weight: Share = setting(
        0.1,
        "Share of the contrastive loss taken over batch + queue instead of the batch alone. The queue has no momentum "
        "encoder: high shares learn slower (docs/lab_log.md). 0 keeps the queue for hard negatives only.",
    )
    label_smoothing: Annotated[float, Range("at least 0 and below 1", lambda value: 0 <= value < 1)] = setting(
        0.0,
        "Share of the contrastive target that goes to all candidates evenly: it delays overfitting of small data.",
    )
    temperature: Annotated[float, Range("from 0.01 to 1", lambda value: 0.01 <= value <= 1)] = setting(
        0.5, "Temperature the contrastive loss starts from; it is learned, within 0.01 to 1. 0.07 learns much faster."
    )
    temperature_lr_factor: NotNegative[float] = setting(
        50.0, "Learning rate of the log-temperature relative to learning_rate."
    )
    itm_temperature: Positive = setting(0.07, "Temperature of drawing hard negatives: lower draws harder ones.")
    itm_temperature_start: Positive | None = setting(
        0.5,
        "Where itm_temperature starts, to fall to its value by the end of the run; none: no schedule. Pairs that "
        "cannot be told apart yet teach nothing, and hold up the rest (docs/lab_log.md).",
    )
    token_dropout: Rate = setting(
        0.0, "Share of caption tokens deleted before the contrastive pass, in training only; BOS and EOS stay."
    )


@dataclass
class Stage1TrainingSettings(TrainingSettings):
    """How it is minimised: batches, steps, learning rate, numbers and devices."""

    optimizer: Literal["adamw", "muon", "normuon"] = setting(
        "muon",
        "muon: Muon updates what is new and a matrix, AdamW the rest. It learns in fewer steps. normuon: the same with "
        "NorMuon (arXiv 2510.05491), whose updates are of one size for all neurons, at muon_learning_rate.",
    )
    tower_optimizer: Literal["adamw", "muon", "normuon"] = setting(
        "adamw", "What updates the matrices of a tower with vision_tuning full; muon suits one with random weights."
    )


@dataclass
class DataSettings:
    """Where batches come from."""

    _argument_group_name = "data"

    train_data: Annotated[str, WrittenAs(_sources_text)] | None = setting(
        None,
        "Folder written by data_prep/, or 'scenes': built-in, rendered on the fly. Several: DIR_A,DIR_B joins them, "
        "DIR_A:2,DIR_B:1 mixes them by weight (in YAML also a list). With streaming also Parquet shards: a folder, a "
        "glob, or a URL as hf://datasets/owner/name/data/train-*.parquet.",
    )
    val_data: str | None = setting(
        None, "One folder written by data_prep/, or 'scenes', for validation; never the training data."
    )
    text_data: str | None = setting(
        None,
        "Folder of text written by data_prep/babylm_text.py, trained on beside the pairs of train_data, or alone. "
        "Needs text_loss_weight.",
    )
    text_val_data: str | None = setting(None, "Such a folder of held-out text: perplexity of each source.")
    text_ratio: Part = setting(
        0.5,
        "Share of the batches that are text, where there are pairs too. An epoch is then one pass through the text.",
    )
    text_seq_len: SequenceLength | None = setting(
        None, "Tokens of a training sequence of text, into which documents are packed; none: max_seq_len."
    )
    streaming: bool = setting(
        False,
        "Read training shards as they come, at constant memory, in place of mapping the whole data. An epoch shows "
        "each image once; its captions take turns, epoch by epoch.",
    )
    shuffle_buffer: AtLeastOne = setting(
        1000, "With streaming: images that are shuffled together, and that each worker holds in memory, encoded."
    )
    max_bad_fraction: Share = setting(
        0.01, "Training stops when a larger share of the samples than this had to be replaced for bad records."
    )
    max_image_pixels: AtLeastOne = setting(
        50_000_000, "Images of more pixels are refused before they are decoded (Pillow's own limit is 179 million)."
    )
    tokenizer: str = setting(
        "gpt2",
        "Hub id, a folder with vocab.json and merges.txt, or 'train': a byte-level BPE of vocab_size tokens is trained "
        "on the training captions at the first start and kept in output_dir/tokenizer. With init_from, 'train' is "
        "that model's. 'extend' (stage 2): that model's, with marks and frequent words of the questions added.",
    )
    num_workers: Few = setting(2, "Worker processes that load data for each process; 0: load in the process itself.")
    caption_sampling: Literal["all", "one"] = setting(
        "all", "An epoch shows each caption once (all), or each image once with a caption drawn at random (one)."
    )
    scenes_train: Many = setting(20000, "Training scenes of the built-in data.")
    scenes_val: Many = setting(600, "Held-out scenes of the built-in data.")
    image_augmentation: bool = setting(
        False,
        "Random crops of training images, mirrored where the caption says neither left nor right (in some twenty "
        "languages).",
    )
    val_max_images: AtLeastOne | None = setting(None, "Validate on this many images at most; none: on all of them.")
