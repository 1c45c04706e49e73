"""A control of every figure of seeing: the same conversations, each shown another one's pictures."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from bitgen.data.conversations.records import Conversation, Conversations
from bitgen.data.sampler import SampleKey


def partners(conversations: Conversations, rows: list[int]) -> dict[int, int]:
    """For each row another one, of another image, that shows as many visuals of as many pictures.

    Images of one layout stand in a circle, and each row gets the image half the circle away. Rows without a picture,
    and those whose layout no second image has, are left out.
    """
    circles: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        shown = conversations[row]
        if shown.visuals:
            circles[tuple(len(visual) for visual in shown.visuals)][shown.image].append(row)
    found: dict[int, int] = {}
    for circle in circles.values():
        images = sorted(circle)
        for place, image in enumerate(images):
            other = images[(place + max(len(images) // 2, 1)) % len(images)]
            if other != image:
                found |= {row: circle[other][0] for row in circle[image]}
    return dict(sorted(found.items()))


class OtherPictures:
    """Conversations with the visuals of others; implements ``Conversations``.

    Args:
        conversations: what is asked and said.
        shown: row to the row whose visuals it gets, as of :func:`partners`; other rows keep their own.
    """

    def __init__(self, conversations: Conversations, shown: dict[int, int]) -> None:
        self.conversations, self.shown = conversations, shown

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "conversations":
            raise AttributeError(name)
        return getattr(self.conversations, name)

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, key: SampleKey | int) -> Conversation:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        own = self.conversations[key]
        if index not in self.shown:
            return own
        other = self.conversations[SampleKey(self.shown[index], epoch)]
        return own._replace(visuals=other.visuals, image=other.image)
