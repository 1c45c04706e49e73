"""Recall: what a memory of taught facts holds becomes tokens that the decoder looks at, so that it says them.

A fact is a key and a value. The *key* is what a later cue produces too: a token of a picture, or a question. The
*value* is the text that is to be said, token by token, so that a text of words that no training ever held can be read
out again. Reading from a memory (``memory/speaking.py``, or in training the closed form of ``objectives/recall.py``)
gives values back; :meth:`Recall.tokens` makes of each of them tokens to look at, and :class:`Reader`, behind each block
of the decoder, looks. Larimar (arXiv 2403.11901, section 3) conditions its decoder on what was read in the same place.

Where nothing was recalled nothing is computed: the network is what it was before, to the last bit.
Shapes: B rows, T text tokens, P image tokens, R facts recalled a row, L tokens of a value, d numbers a token of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .attention import attend, split_heads
from .configuration_bitgen import BitGenConfig
from .dropout import Dropout

_TEXT_LAYERS = 2


class Recalled(NamedTuple):
    """What was recalled: ``tokens [B, S, D]``, and which of them are there, ``present [B, S]``."""

    tokens: torch.Tensor
    present: torch.Tensor


class Reader(nn.Module):
    """Cross-attention from text tokens to recalled tokens; rows that recalled nothing stay as they are.

    It begins as nothing, by an output of zeros. ``hidden [B, T, D] -> [B, T, D]``.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: torch.Tensor, recalled: Recalled) -> torch.Tensor:
        key, value = self.key_value(recalled.tokens).chunk(2, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in (self.query(self.norm(hidden)), key, value))
        some = recalled.present.any(dim=1)
        # A row without any looks everywhere, which keeps the softmax finite, and takes nothing from it.
        seen = recalled.present | ~some[:, None]
        read = self.dropout(self.output(attend(query, key, value, seen[:, None, None, :])))
        return torch.where(some[:, None, None], hidden + read.to(hidden.dtype), hidden)


class Recall(nn.Module):
    """Keys of cues, values of texts, and the readers of what was recalled.

    Everything here reads the rest of the network and changes nothing in it, so that it can be trained alone.
    """

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__()
        width, heads, dropout = config.embed_dim, config.num_heads, config.dropout
        self.length, self.code_width, self.key_width = config.recall_tokens, config.recall_code, config.recall_dim
        self.image_key = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, self.key_width)
        )
        self.image_weight = nn.Linear(width, 1)
        self.text_weight = nn.Linear(width, self.key_width)
        self.text_norm = nn.LayerNorm(width)
        self.text_position = nn.Parameter(0.02 * torch.randn(config.max_seq_len, width))
        self.text_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(_TEXT_LAYERS)
        )
        self.text_key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.key_width))
        self.value_norm = nn.LayerNorm(width)
        self.value_in = nn.Linear(width, self.code_width, bias=False)
        self.value_out = nn.Linear(self.code_width, width)
        self.place = nn.Parameter(0.1 * torch.randn(self.length, width))
        self.where = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.readers = nn.ModuleList(Reader(width, heads, dropout) for _ in range(config.num_layers))
        # Of a cosine with a key: below the threshold nothing like the cue was taught.
        self.threshold = nn.Parameter(torch.tensor(0.5))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    @property
    def value_width(self) -> int:
        """Numbers of a value, L x d."""
        return self.length * self.code_width

    # --- keys ----------------------------------------------------------------------------------------------------

    def image_keys(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """The key of each token of a picture, ``[B, P, D] -> [B, P, k]``, of length 1."""
        return F.normalize(self.image_key(image_tokens).float(), dim=-1)

    def taught_image_key(self, image_tokens: torch.Tensor, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The key that a picture is taught under: of those of its tokens that the text is about.

        Args:
            image_tokens: ``[B, P, D]``.
            embedded, mask: the text that it is taught with, ``[B, T, D]`` of the token table and ``[B, T]``.

        Returns:
            ``[B, k]``, of length 1.
        """
        keys = self.image_keys(image_tokens)
        asked = self.text_weight(self._text(embedded, mask))  # [B, k]
        weights = self.image_weight(image_tokens).squeeze(-1) + (keys * asked[:, None]).sum(dim=-1)
        return F.normalize((weights.softmax(dim=1)[..., None] * keys).sum(dim=1).float(), dim=-1)

    def text_keys(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Keys of texts, told or asked: ``[B, T, D], [B, T] -> [B, k]``, of length 1."""
        return F.normalize(self.text_key(self._text(embedded, mask)).float(), dim=-1)

    def _text(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean of a text's tokens after the layers, ``[B, D]``."""
        hidden = self.text_norm(embedded) + self.text_position[: embedded.shape[1]]
        padding = mask == 0
        for layer in self.text_layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """Of cosines between cues and keys: the log odds that this is what was taught, and not nothing."""
        return self.log_scale.exp() * (cosines - self.threshold)

    # --- values --------------------------------------------------------------------------------------------------

    def values(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Codes of texts, ``[B, T, D], [B, T] -> [B, L d]``; what is longer than L tokens is left out."""
        codes = self.value_in(self.value_norm(embedded[:, : self.length])).float()
        codes = codes * mask[:, : self.length, None]
        return F.pad(codes, (0, 0, 0, self.length - codes.shape[1])).flatten(1)

    def value_logits(self, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """What tokens values ``[B, L d]`` are of: ``[B, L, V]``, by the nearest row of the token ``table [V, D]``."""
        wanted = self.value_in(self.value_norm(table)).float()  # [V, d]
        codes = values.unflatten(-1, (self.length, self.code_width)).float()
        return 2 * codes @ wanted.mT - wanted.square().sum(dim=-1)  # minus the squared distance, but for |code|^2

    def tokens(self, values: torch.Tensor, where: torch.Tensor, present: torch.Tensor) -> Recalled:
        """Recalled values as tokens to look at.

        Args:
            values: ``[B, R, L d]``.
            where: ``[B, R, D]``, the image token that each was recalled by; zeros where a text was the cue.
            present: ``[B, R]``, which of them were recalled.
        """
        codes = values.unflatten(-1, (self.length, self.code_width)).to(self.place.dtype)
        seen = where.any(dim=-1, keepdim=True).to(self.place.dtype)
        place = self.place + (self.where(where.to(self.place.dtype)) * seen)[:, :, None]
        return Recalled((self.value_out(codes) + place).flatten(1, 2), present.repeat_interleave(self.length, dim=1))
