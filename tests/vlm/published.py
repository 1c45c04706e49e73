"""Sizes of published language models, as their configurations give them, and what their adapters count."""

from __future__ import annotations

from typing import NamedTuple

from transformers import AutoConfig, PretrainedConfig

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


class Published(NamedTuple):
    """A model's sizes, and the parameters of the base and of adapters on all linear layers at ranks 8, 16, 128."""

    kind: str
    sizes: tuple[int, ...]
    vocabulary: int
    tied: bool
    head: int | None
    base: int
    lora: dict[int, int]
    dora_16: int

    def config(self) -> PretrainedConfig:
        sizes = dict(zip(_SIZES, self.sizes, strict=True)) | ({} if self.head is None else {"head_dim": self.head})
        return AutoConfig.for_model(self.kind, **sizes, vocab_size=self.vocabulary, tie_word_embeddings=self.tied)


def _counts(r8: int, r16: int, r128: int) -> dict[int, int]:
    return {8: r8, 16: r16, 128: r128}


_LLAMA_2, _LLAMA_2_COUNTS = (4096, 11008, 32, 32, 32), _counts(19_988_480, 39_976_960, 319_815_680)
_GROUPED, _GROUPED_COUNTS = (4096, 14336, 32, 32, 8), _counts(20_971_520, 41_943_040, 335_544_320)
MODELS = {
    "LLaMA-2-7B": Published("llama", _LLAMA_2, 32000, False, None, 6_738_415_616, _LLAMA_2_COUNTS, 41_336_832),
    "Meditron-7B": Published("llama", _LLAMA_2, 32017, False, None, 6_738_554_880, _LLAMA_2_COUNTS, 41_336_832),
    "Llama-3-8B": Published("llama", _GROUPED, 128256, False, None, 8_030_261_248, _GROUPED_COUNTS, 43_319_296),
    "Mistral-7B": Published("mistral", _GROUPED, 32000, False, None, 7_241_732_096, _GROUPED_COUNTS, 43_319_296),
    "Llama-3.2-3B": Published(
        "llama",
        (3072, 8192, 28, 24, 8),
        128256,
        True,
        None,
        3_212_749_824,
        _counts(12_156_928, 24_313_856, 194_510_848),
        25_088_000,
    ),
    "Qwen2.5-3B": Published(
        "qwen2",
        (2048, 11008, 36, 16, 2),
        151936,
        True,
        None,
        3_085_938_688,
        _counts(14_966_784, 29_933_568, 239_468_544),
        30_965_760,
    ),
    "Qwen3-4B": Published(
        "qwen3",
        (2560, 9728, 36, 32, 8),
        151936,
        True,
        128,
        4_022_468_096,
        _counts(16_515_072, 33_030_144, 264_241_152),
        34_136_064,
    ),
    "Qwen3-8B": Published(
        "qwen3",
        (4096, 12288, 36, 32, 8),
        151936,
        False,
        128,
        8_190_735_360,
        _counts(21_823_488, 43_646_976, 349_175_808),
        45_047_808,
    ),
    "Phi-3-mini": Published(
        "phi3",
        (3072, 8192, 32, 32, 32),
        32064,
        False,
        None,
        3_821_079_552,
        _counts(12_582_912, 25_165_824, 201_326_592),
        26_181_632,
    ),
    "Gemma-2-2b": Published(
        "gemma2",
        (2304, 9216, 26, 8, 4),
        256000,
        True,
        256,
        2_614_341_888,
        _counts(10_383_360, 20_766_720, 166_133_760),
        21_472_256,
    ),
    "SmolLM2-135M": Published(
        "llama",
        (576, 1536, 30, 9, 3),
        49152,
        True,
        None,
        134_515_008,
        _counts(2_442_240, 4_884_480, 39_075_840),
        5_040_000,
    ),
}
