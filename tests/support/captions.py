"""What tests of captions share: plain counts and CIDEr-D, and two captions in each of many scripts."""

from __future__ import annotations

import math
from collections import Counter

SCRIPTS = {  # two captions, the first one's words, and the first with a word changed
    "Chinese": (
        "一只棕色的狗在草地上奔跑。",
        "两个孩子在海边玩沙子",
        "一 只 棕 色 的 狗 在 草 地 上 奔 跑",
        "一只棕色的狗在草地上跑步",
    ),
    "Japanese": ("茶色の犬が走る", "子供がパンを食べる", "茶 色 の 犬 が 走 る", "茶色の犬が座る"),
    "Thai": ("สุนัขวิ่งบนหญ้า", "เด็กสองคนเล่นทราย", "สุ นั ข วิ่ ง บ น ห ญ้ า", "สุนัขนั่งบนหญ้า"),
    "Hindi": ("एक भूरा कुत्ता दौड़ रहा है।", "दो बच्चे रेत में खेल रहे हैं", "एक भूरा कुत्ता दौड़ रहा है", "एक भूरा कुत्ता बैठ रहा है"),
    "Persian": ("سگ قهوه‌ای می‌دود و بازی", "دو کودک در ساحل بازی", "سگ قهوه‌ای می‌دود و بازی", "سگ قهوه‌ای می‌دود و خواب"),
    "Burmese": ("ခွေးပြေးနေတယ်", "ကလေးနှစ်ယောက်", "ခွေး ပြေး နေ တ ယ်", "ခွေးပြေးသွားတယ်"),
    "Korean": (
        "갈색 개가 풀밭 위를 달린다",
        "두 아이가 모래를 가지고 논다",
        "갈색 개가 풀밭 위를 달린다",
        "갈색 개가 풀밭 위를 걷는다",
    ),
    "mixed": (
        "一只 dog 在 the grass 上",
        "两个 kids 玩 with sand 子",
        "一 只 dog 在 the grass 上",
        "一只 cat 在 the grass 上",
    ),
}


def grams(text, n):
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def plain_cider(captions, references):
    """Vedantam et al. 2015, section 4 with the clipping and the length penalty of CIDEr-D; over 1 to 4 words."""
    count = len(captions)

    def weight(gram):
        images = sum(any(gram in grams(text, len(gram)) for text in texts) for texts in references)
        return math.log(count) - math.log(max(images, 1))

    def vector(text, n):
        return {gram: times * weight(gram) for gram, times in grams(text, n).items()}

    def norm(one):
        return math.sqrt(sum(value**2 for value in one.values()))

    total = 0.0
    for caption, texts in zip(captions, references, strict=True):
        for n in range(1, 5):
            mine = vector(caption, n)
            for text in texts:
                theirs = vector(text, n)
                product = sum(min(value, theirs.get(gram, 0)) * theirs.get(gram, 0) for gram, value in mine.items())
                size = norm(mine) * norm(theirs)
                # The published code measures lengths in pairs of words: one fewer than words, or none.
                gap = max(len(caption.split()) - 1, 0) - max(len(text.split()) - 1, 0)
                total += (product / size if size else 0.0) * math.exp(-(gap**2) / 72) / len(texts) / 4
    return 100 * 10 * total / count
