"""Conversations to ids: the chat template, and a place for each token of a visual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from bitgen.data.bad_records import BadRecord
from bitgen.data.conversations.chat import encode_chat
from bitgen.data.conversations.records import Turn
from bitgen.model.likelihood import IGNORED
from bitgen.vlm.splice import expand

UNRENDERED = "turns that the chat template cannot write"


@dataclass(frozen=True)
class Speech:
    """Writes turns as a language model was taught to read them; what ``ConversationDataset`` asks for as ``encode``."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    system_prompt: str | None = None

    def __call__(self, turns: Sequence[Turn], tokens: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """``(ids, labels)``, both ``[T]``, with as many ids of -200 as each visual has ``tokens``.

        Raises:
            BadRecord: the template cannot write these turns.
        """
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            ids, labels = encode_chat(self.tokenizer, messages, self.template, self.system_prompt, visuals=len(tokens))
        except ValueError as error:
            raise BadRecord(str(error), UNRENDERED) from error
        sample = expand(ids, labels, tokens)
        return sample.ids.tolist(), sample.labels.tolist()

    @property
    def ends(self) -> list[int]:
        """The ids that end an answer: the tokenizer's EOS, and the one that the template writes."""
        ids, labels = self([Turn("user", "x"), Turn("assistant", "x")], [])
        last = next(label for label in reversed(labels) if label != IGNORED)
        return sorted({last, self.tokenizer.eos_token_id})
