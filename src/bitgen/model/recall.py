"""Recall: what a memory of taught facts holds becomes tokens that the decoder looks at, so that it says them.

A fact is a key and a value. The *key* is what a later cue produces too: a token of a picture, or a question. The
*value* is the text that is to be said, token by token, so that a text of words that no training ever held can be read
out again. Reading a memory gives values back (``speaking.py``); :meth:`Recall.tokens` makes of each of them tokens to
look at, and ``recalled.py`` holds what looks at them.

Where nothing was recalled nothing is computed: the network is what it was before, to the last bit.
Shapes: B rows, T text tokens, P image tokens, R facts recalled a row, L tokens of a value, d numbers a token of it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_bitgen import BitGenConfig
from .picture import Picture, key_of_the_whole
from .question import IN_A_ROW, NO_WORD, Question, depth_in_words, lacking, names_held
from .recalled import BEFORE, Beside, Pointer, Reader, Recalled, compare

_TEXT_LAYERS = 2
_LEAST_CODE = 0.25  # of a code's squared length, which is 1 as it is written
_PICTURES, _QUESTIONS, _KEYS_ALONE = 0, 1, 2  # kinds of cue
_WORTH = -2.0  # of a word that training has not weighed yet, before the softplus: 0.13 nats
_AT_ONCE = 10_000_000  # pairs of a value's token and the vocabulary's that are compared together
_TEXT_DROPPED = 0.05  # of a text's tokens, before its key is made, in training


class Recall(nn.Module):
    """Keys of cues, values of texts, and what reads and says what was recalled.

    Everything here reads the rest of the network and changes nothing in it, so that it can be trained alone. It has a
    token table of its own: that of a trained model hardly tells apart what it never read.
    """

    def __init__(self, config: BitGenConfig) -> None:
        super().__init__()
        self.config, width, heads, dropout = config, config.embed_dim, config.num_heads, config.dropout
        self.length, self.code_width, self.key_width = config.recall_tokens, config.recall_code, config.recall_dim
        self.space = config.recall_space
        self.image_key = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, self.key_width)
        )
        self.image_weight = nn.Linear(width, 1)
        self.text_weight = nn.Linear(width, self.key_width)
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.text_position = nn.Parameter(0.1 * torch.randn(config.max_seq_len, width))
        self.text_layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(_TEXT_LAYERS)
        )
        self.text_key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.key_width))
        self.code_embedding = nn.Embedding(config.vocab_size, self.code_width)
        self.value_out = nn.Linear(self.code_width, width)
        self.value_before = nn.Linear(self.code_width, width, bias=False)
        self.place = nn.Parameter(0.1 * torch.randn(self.length, width))
        self.where = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.spot = nn.Parameter(0.1 * torch.randn(config.pooled_tokens, width))
        self.readers = nn.ModuleList(Reader(width, heads, dropout) for _ in range(config.num_layers))
        self.pointer = Pointer(width)
        self.word_worth = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, IN_A_ROW))
        # Of a cosine with a key: below the threshold nothing like the cue was taught. For pictures, for questions, and
        # for questions whose words do not count.
        self.threshold = nn.Parameter(torch.tensor([0.7, 0.7, 0.7]))
        self.log_scale = nn.Parameter(torch.tensor([25.0, 25.0, 25.0]).log())
        # Of a cosine of codes: nats that a token which is pointed at gains.
        self.log_say = nn.Parameter(torch.tensor(20.0).log())

    def resize(self, tokens: int) -> None:
        """Give both token tables so many rows: those that stay as they are, new ones as at the beginning."""
        for name in ("token_embedding", "code_embedding"):
            old: nn.Embedding = getattr(self, name)
            new = nn.Embedding(tokens, old.embedding_dim).to(old.weight)
            kept = min(tokens, old.num_embeddings)
            with torch.no_grad():
                new.weight[:kept] = old.weight[:kept]
            new.weight.requires_grad_(old.weight.requires_grad)
            setattr(self, name, new)

    @property
    def value_width(self) -> int:
        """Numbers of a value, L x d."""
        return self.length * self.code_width

    # --- keys ----------------------------------------------------------------------------------------------------

    def picture(self, image_tokens: torch.Tensor) -> Picture:
        """Pictures as cues: of each of their tokens ``[B, P, D]`` the key and what it counts."""
        return Picture(self.image_keys(image_tokens), self.image_weight(image_tokens).squeeze(-1))

    def image_keys(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """The key of each token of a picture, ``[B, P, D] -> [B, P, k]``, of length 1."""
        return F.normalize(self.image_key(image_tokens).float(), dim=-1)

    def taught_image_key(
        self, image_tokens: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """The key that a picture is taught under: of those of its tokens that the text is about, as far as the text's
        value holds it.

        Args:
            image_tokens: ``[B, P, D]``.
            input_ids, attention_mask: the text that it is taught with, ``[B, T]``, BOS ... EOS.

        Returns:
            ``[B, k]``, of length 1.
        """
        held = slice(self.length + 1)  # BOS, and the tokens that a value holds
        asked = self.looked_for(input_ids[:, held], attention_mask[:, held])
        return key_of_the_whole(self.picture(image_tokens), asked)

    def looked_for(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What texts look for in a picture, ``[B, T] -> [B, k]``: the greater the product with a token's key, the more
        the text is about that token."""
        return self.text_weight(_mean(*self._text(input_ids, attention_mask)))

    def looked_for_by(self, values: torch.Tensor) -> torch.Tensor:
        """The same of texts decoded from their values, ``[N, L d] -> [N, k]``: of their first L tokens."""
        tokens = self.tokens_of(values)[:, : len(self.text_position) - 1]
        ids = F.pad(tokens.clamp_min(0), (1, 0), value=self.config.bos_token_id)
        return self.looked_for(ids, F.pad((tokens >= 0).long(), (1, 0), value=1))

    def text_keys(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Keys of texts that are told, BOS ... EOS: ``[B, T] -> [B, k]``, of length 1."""
        return self._text_key(*self._text(input_ids, attention_mask))

    def questions(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Question:
        """What texts ask, ``[B, T]``, BOS ... EOS: their keys, as :meth:`text_keys` makes them, and their words, all of
        which count, also those that a key leaves out in training."""
        hidden, kept = self._text(input_ids, attention_mask)
        words = attention_mask[:, 2:, None]  # neither BOS nor EOS
        worth = F.softplus(self.word_worth(hidden[:, 1:-1]).float() + _WORTH) * words
        ids = input_ids[:, 1:-1]
        behind = torch.arange(IN_A_ROW, device=ids.device) <= torch.arange(ids.shape[1], device=ids.device)[:, None]
        kinds = torch.zeros_like(ids) if self.training else self._words()[ids] * words[..., 0]  # which does without
        return Question(self._text_key(hidden, kept), self.codes()[ids] * words, worth * behind, kinds)

    def _text_key(self, hidden: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text_key(_mean(hidden, kept)).float(), dim=-1)

    def _text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A text's tokens after the layers, ``[B, T, D]``, and which of them count, ``[B, T]``."""
        if self.training:  # a text means the same without one of its words, and all wordings are never taught
            kept = torch.rand(attention_mask.shape, device=attention_mask.device) >= _TEXT_DROPPED
            attention_mask = attention_mask * (kept | (attention_mask.cumsum(dim=1) == 1))  # BOS stays
        hidden = self.token_embedding(input_ids) + self.text_position[: input_ids.shape[1]]
        padding = attention_mask == 0
        for layer in self.text_layers:
            hidden = layer(hidden, src_key_padding_mask=padding)
        return hidden, attention_mask

    def logits(self, cosines: torch.Tensor) -> torch.Tensor:
        """Of cosines between pictures' keys and facts': the log odds that this is what was taught, and not nothing,
        among as many facts as ``Meaning.facts`` says."""
        return self._log_odds(cosines, _PICTURES)

    def asked_odds(self, question: Question, keys: torch.Tensor) -> torch.Tensor:
        """The same of questions, by the facts' keys ``[E, k]``: ``[B, E]``."""
        return self._log_odds(question.keys @ keys.mT, _QUESTIONS)

    def asked_lacking(self, question: Question, values: torch.Tensor) -> torch.Tensor:
        """What words of questions are worth, in nats, that facts' values ``[E, L d]`` do not hold: ``[B, E]``. Training
        subtracts it from the odds. Before a fact's first word stands a space, as before the same word in the
        question."""
        if self.space is not None:
            values = torch.cat([self._space_code().to(values).expand(len(values), -1), values], dim=1)
        return lacking(question, values)

    def asked_names(self, question: Question, values: torch.Tensor, least: float) -> torch.Tensor:
        """Whether facts have all names of questions, words worth more nats than ``least``: ``[B, E]``.

        Raises:
            ValueError: the model's files are of an earlier release, which did not say what its tokens are of words.
        """
        if self.config.recall_words is None:
            raise ValueError(
                "This model was written by an earlier release of BitGen, which did not keep what its tokens are of "
                "words. Open it with bitgen.load, or export it again from its checkpoint (src/export.py)."
            )
        return names_held(question, values, self._words_of, least)

    def asked_by_keys(self, question: Question, keys: torch.Tensor) -> torch.Tensor:
        """The same by keys alone, for training: what words tell apart keys would no longer have to, and facts with
        equal keys cannot be read one by one."""
        return self._log_odds(question.keys @ keys.mT, _KEYS_ALONE)

    def _log_odds(self, cosines: torch.Tensor, kind: int) -> torch.Tensor:
        return self.log_scale[kind].exp() * (cosines - self.threshold[kind])

    # --- values --------------------------------------------------------------------------------------------------

    def codes(self) -> torch.Tensor:
        """The code of each token, ``[V, d]``, of length 1."""
        return F.normalize(self.code_embedding.weight.float(), dim=-1)

    def _space_code(self) -> torch.Tensor:
        """The code ``[d]`` of the token that a space alone is, where the tokenizer has one."""
        return F.normalize(self.code_embedding.weight[self.space].float(), dim=0)

    def values(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Values of texts BOS ... EOS, ``[B, T] -> [B, L d]``: the codes of their tokens after BOS, and then zeros.
        What is longer than L tokens is left out."""
        ids, mask = input_ids[:, 1 : self.length + 1], attention_mask[:, 1 : self.length + 1]
        codes = self.codes()[ids] * mask[..., None]
        return F.pad(codes, (0, 0, 0, self.length - codes.shape[1])).flatten(1)

    def value_logits(self, values: torch.Tensor) -> torch.Tensor:
        """What tokens values ``[B, L d]`` are of: ``[B, L, V]``."""
        return self.said_logits(values.unflatten(-1, (self.length, self.code_width)))

    def _words(self) -> torch.Tensor:
        """What each token is of a word, ``[V]``."""
        size, device = self.code_embedding.num_embeddings, self.place.device
        digits = (self.config.recall_words or "")[:size].ljust(size, "0").encode()
        return torch.frombuffer(bytearray(digits), dtype=torch.uint8).to(device).long() - ord("0")

    def _words_of(self, values: torch.Tensor) -> torch.Tensor:
        """The same of the tokens of values, ``[N, L d]`` to ``[N, L]``."""
        return self._tokens_and_words(values)[1]

    def _tokens_and_words(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokens_of(values.to(self.place.device, torch.float32))
        return tokens, self._words()[tokens.clamp_min(0)] * (tokens >= 0)

    def words_in(self, values: torch.Tensor) -> list[list[tuple[int, ...]]]:
        """The words of each of the texts of values ``[N, L d]``, each of them its tokens; marks are none."""
        texts: list[list[tuple[int, ...]]] = []
        tokens, words = self._tokens_and_words(values)
        for row, kinds, depths in zip(tokens.tolist(), words.tolist(), depth_in_words(words).tolist(), strict=True):
            text: list[tuple[int, ...]] = []
            for token, kind, depth in zip(row, kinds, depths, strict=True):
                if kind != NO_WORD:
                    text[-1:] = [(*text[-1], token)] if depth else [*text[-1:], (token,)]
            texts.append(text)
        return texts

    def tokens_of(self, values: torch.Tensor) -> torch.Tensor:
        """The tokens that values ``[B, L d]`` are nearest to, ``[B, L]``, -1 behind a text's end."""
        codes = values.unflatten(-1, (self.length, self.code_width))
        real = codes.square().sum(dim=-1) > _LEAST_CODE
        tokens = torch.full_like(real, -1, dtype=torch.long)
        known = self.codes()
        parts = codes[real].float().split(max(1, _AT_ONCE // len(known)))
        tokens[real] = torch.cat([(part @ known.mT).argmax(dim=-1) for part in parts])
        return tokens

    def said_logits(self, said: torch.Tensor) -> torch.Tensor:
        """What the output head's logits gain by codes of tokens ``[..., d]``: ``[..., V]``."""
        return self.log_say.exp() * (said.float() @ self.codes().mT)

    def seen(self, image_tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """What facts were recalled by: the picture's tokens ``[B, P, D]`` of the numbers ``at [B, R]``, and where in
        the picture these are, without which two names in one picture could not be told apart: ``[B, R, D]``."""
        tokens = image_tokens.to(self.spot.dtype).gather(1, at[..., None].expand(-1, -1, image_tokens.shape[-1]))
        return self.where(tokens) + self.spot[at]

    def tokens(self, values: torch.Tensor, seen: torch.Tensor, present: torch.Tensor) -> Recalled:
        """Recalled values as tokens to look at.

        Args:
            values: ``[B, R, L d]``.
            seen: ``[B, R, D]``, what each was recalled by, of :meth:`seen`; zeros where a text was the cue.
            present: ``[B, R]``, which of them were recalled.
        """
        codes = values.unflatten(-1, (self.length, self.code_width)).to(self.place.dtype)
        # An answer may begin with a token that is a space. It counts as what stands before a fact's first word.
        led = F.pad(codes, (0, 0, BEFORE, 0))
        if self.space is not None:
            led[..., BEFORE - 1, :] = self._space_code()
        before = [led[..., start : start + self.length, :] for start in reversed(range(BEFORE))]
        behind = F.pad(codes, (0, 0, 0, 1))[..., 1:, :]
        looked_at = self.value_out(codes) + self.value_before(before[0]) + self.place + seen[:, :, None].to(codes.dtype)
        # Behind a text's end there is nothing.
        real = codes.square().sum(dim=-1) > _LEAST_CODE
        depth = torch.zeros_like(codes[..., :1])
        if not self.training:  # which does without
            depth = depth_in_words(self._words_of(values.flatten(0, 1))).clamp_max(BEFORE).view_as(depth).to(depth)
        tokens = torch.cat([looked_at, codes, *before, behind, depth], dim=-1).flatten(1, 2)
        return Recalled(tokens, (real & present[..., None]).flatten(1, 2))

    def beside(
        self, recalled: Recalled | None, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> Beside | None:
        """What was recalled beside ``input_ids [B, T]``; None: nothing was."""
        if recalled is None:
            return None
        codes = self.codes()
        text = codes[input_ids]
        if attention_mask is not None:
            text = text * attention_mask[..., None]  # padding is no token
        if recalled.after is not None:
            text = torch.cat([codes[recalled.after.clamp_min(0)] * (recalled.after >= 0)[..., None], text], dim=1)
        return compare(recalled, text, input_ids.shape[1], None if self.space is None else self._space_code().float())


def _mean(hidden: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The mean of the tokens that count, ``[B, T, D]`` and ``[B, T]`` to ``[B, D]``."""
    weights = kept[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
