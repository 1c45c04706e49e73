"""Any source of conversations by its name: a folder of conversations, or of captioned images or features, or scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bitgen.data.conversations.pairs import PairConversations
from bitgen.data.conversations.records import ConversationReader, Conversations
from bitgen.data.records import RecordReader
from bitgen.data.scenes.dataset import SceneReader
from bitgen.data.sidecar import SIDECAR
from bitgen.guards.json_files import BadJson, read_json

SCENES = "scenes"
CONVERSATIONS = "conversations"


def open_conversations(
    source: str,
    prompts: Sequence[str],
    seed: int = 0,
    caption_sampling: str = "all",
    picture_size: int = 224,
    split: str = "train",
    scenes: int = 600,
) -> Conversations:
    """The conversations of a source.

    Args:
        source: a folder written by ``data_prep/``, or ``scenes``.
        prompts: what the user says of an image with captions.
        picture_size: side in pixels at which scenes are drawn.
        split, scenes: of the built-in data: ``train`` or ``val``, and how many.

    Raises:
        ValueError: it is missing, damaged or empty.
    """
    if source == SCENES:
        reader = SceneReader(split, scenes, seed)
        return PairConversations(reader, prompts, seed, caption_sampling, picture_size)
    if _kind(source) == CONVERSATIONS:
        return ConversationReader(source, seed)
    return PairConversations(RecordReader(source), prompts, seed, caption_sampling, picture_size)


def _kind(folder: str) -> object:
    """What a folder's sidecar says that it holds; None where there is none, which its reader explains."""
    try:
        return read_json(Path(folder) / SIDECAR, dict).get("kind")
    except (OSError, BadJson):
        return None


def one_an_image(conversations: Conversations) -> list[int]:
    """Rows of which no two ask about the same image with captions: the questions whose answers are scored."""
    if isinstance(conversations, PairConversations) and conversations.caption_sampling == "all":
        return conversations.first_caption[:-1].tolist()
    return list(range(len(conversations)))
