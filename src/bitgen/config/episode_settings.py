"""Settings of learning to speak from a memory: the network's part that does it, and the episodes that teach it."""

from __future__ import annotations

from dataclasses import dataclass

from bitgen.config.fields import AtLeastOne, NotNegative, Size, setting


@dataclass
class EpisodeSettings:
    """Speaking from a memory of taught facts (docs/speaking.md)."""

    _argument_group_name = "episodes"

    recall_weight: NotNegative[float] = setting(
        0.0,
        "Weight of learning to speak from a memory, by episodes. Where it is on it is the only loss: recall alone "
        "trains, and the rest of the network, which init_from gives, stays as it is.",
    )
    recall_tokens: NotNegative[int] = setting(
        0, "Tokens of a text that can be taught; 0: the network has no part that speaks from a memory."
    )
    recall_dim: Size = setting(128, "Width of the key that a taught fact is found by.")
    recall_code: Size = setting(32, "Numbers that each token of a taught text is written with.")
    reader_lr_factor: NotNegative[float] = setting(
        4.0, "Learning rate of what reads recalled texts into the decoder, relative to muon_learning_rate."
    )
    episode_pictures: AtLeastOne = setting(24, "Pictures that an episode teaches, at most.")
    episode_sentences: AtLeastOne = setting(24, "Sentences that an episode teaches, at most.")
    picture_queries: AtLeastOne = setting(32, "Pictures that an episode asks about.")
    sentence_queries: AtLeastOne = setting(24, "Questions in words that an episode asks.")
