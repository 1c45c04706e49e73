"""The model card of a vision-language model of parts: what it is made of, and how to use it."""

from __future__ import annotations

from typing import Any

from bitgen.export.card import metrics_table
from bitgen.guards.markdown import markdown
from bitgen.show.tables import format_markdown
from bitgen.trained_vlm import TrainedVlm
from bitgen.vlm.folder import LANGUAGE_FOLDER
from bitgen.vlm.modeling import ADAPTER, CONNECTOR, LANGUAGE, VISION
from bitgen.vlm.pretrained import BITGEN
from bitgen.vlm.vision import OURS

_FRONT_MATTER = """\
---
library_name: bitgen
pipeline_tag: image-text-to-text
tags: [bitgen, vision-language, lora]
---
"""


def vlm_card(trained: TrainedVlm, metrics: dict[str, Any]) -> str:
    """The text of README.md.

    Args:
        metrics: results of ``src/evaluate.py`` by task, or empty.
    """
    return "\n".join(
        [
            _FRONT_MATTER,
            "# A vision-language model\n\nA vision encoder, a connector and a causal language model, put together "
            "with BitGen. Parts that were not trained are not in this folder: they are looked up under their names, "
            "and refused where their weights are others.\n",
            "## Parts\n\n" + _parts(trained),
            "## Usage\n\n" + _usage(trained),
            "## Metrics\n\n" + metrics_table(metrics),
            "## Limits\n\nIt states falsehoods, and repeats the biases of its parts and of its training data. It is "
            "not for decisions about people.\n",
            "## Licence\n\nEach part, and the training data, keep their own licences.\n",
        ]
    )


def _parts(trained: TrainedVlm) -> str:
    description, counts = trained.description, _counts(trained)
    own, language = set(description.own_parts), description.language
    rows = []
    if description.vision is not None:
        ours = description.vision.config.get(OURS) or {}
        kind = ours.get("source") or description.vision.config.get("model_type")
        rows.append((VISION, kind, ours.get("revision"), ours.get("weights"), counts[VISION], VISION in own))
    if description.connector is not None:
        rows.append((CONNECTOR, description.connector["kind"], None, None, counts[CONNECTOR], True))
    sha = language.weights_sha256
    rows.append((LANGUAGE, language.name, language.revision, sha, counts[LANGUAGE], LANGUAGE in own))
    if description.adapter is not None:
        what = f"{description.adapter['kind']}, rank {description.adapter['rank']}"
        rows.append((ADAPTER, what, None, None, counts[ADAPTER], True))
    shown = [
        (
            part,
            markdown(str(what)),
            markdown(str(revision or "")),
            str(sha or "")[:12],
            f"{count:,}",
            "yes" if here else "no",
        )
        for part, what, revision, sha, count, here in rows
    ]
    heads = ("part", "what", "revision", "SHA-256 of its base", "parameters", "in this folder")
    return format_markdown(heads, shown) + "\n"


def _counts(trained: TrainedVlm) -> dict[str, int]:
    counts = dict.fromkeys((VISION, CONNECTOR, LANGUAGE, ADAPTER), 0)
    for name, parameter in trained.model.named_parameters():
        counts[trained.model.part_of(name)] += parameter.numel()
    return counts


def _usage(trained: TrainedVlm) -> str:
    description = trained.description
    lines = ["```", 'bitgen ask --model DIR photo.jpg --question "What is it?"', "bitgen caption photo.jpg --model DIR"]
    lines += ["```", ""]
    is_own, needed = LANGUAGE in description.own_parts, []
    base = f"DIR/{LANGUAGE_FOLDER}" if is_own else description.language.name
    if not is_own and description.language.revision is not None:
        needed.append(f"revision={description.language.revision!r}")
    if trained.model.language.config.model_type == BITGEN:
        needed.append("trust_remote_code=True")
    # A name with backticks would end the block.
    opened = f"AutoModelForCausalLM.from_pretrained({', '.join([repr(base), *needed])})".replace("`", r"\x60")
    if is_own:
        lines.append(f"`{LANGUAGE_FOLDER}/` is a Hugging Face folder:\n\n```python\n{opened}\n```\n")
    if description.adapter is not None:
        lines.append(f"The adapter alone, by peft:\n\n```python\nPeftModel.from_pretrained({opened}, DIR)\n```\n")
    return "\n".join(lines)
