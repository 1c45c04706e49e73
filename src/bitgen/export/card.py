"""The model card: what a stranger must know before using the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitgen.config.sources import SCENES, parse_sources
from bitgen.data.questions.marked_text import ANSWER
from bitgen.model.parameter_roles import LORA
from bitgen.model.vision_towers import TIMM
from bitgen.show.parameters import COMPONENTS, count_parameters
from bitgen.show.tables import format_markdown
from bitgen.trained import Trained, saw_pictures

# Pipelines of transformers, by what the model looks at.
IMAGE_TASK, TEXT_TASK = "image-text-to-text", "text-generation"
_SPLITS = ("train", "val", "dev", "test")
_FRONT_MATTER = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: {task}
tags: [{tags}]
---
"""


def model_card(
    loaded: Trained, state: dict[str, Any], metrics: dict[str, Any], merge_lora: bool, before: int | None = 0
) -> str:
    """The text of README.md.

    Args:
        state: the checkpoint's training state: ``step``, ``phase``, ``progress``.
        metrics: results of ``src/evaluate.py`` by task, or empty.
        before: words that the weights had seen before this run; None: nobody knows.
    """
    features = loaded.model.config.takes_features
    parts = [
        _FRONT_MATTER.format(task=TEXT_TASK if features else IMAGE_TASK, tags=", ".join(_tags(loaded))),
        "# BitGen\n\nA tiny multimodal language model: a causal text decoder"
        + (" with an episodic memory" if loaded.model.config.use_memory else "")
        + ", which looks at "
        + ("image features computed earlier." if features else f"images through {_tower(loaded)}.")
        + " It continues text, describes images, and scores both.\n",
        "## Usage\n\n" + _usage(loaded, merge_lora),
        "## Training\n\n" + _training(loaded, state, before),
        "## Parameters\n\n" + _parameters(loaded, merge_lora),
        "## Metrics\n\n" + metrics_table(metrics),
        "## Limits\n\n" + _limits(loaded, state),
        "## Licence\n\nApache-2.0, code and weights. The training data keep their own licences"
        + (".\n" if features else f", and so do the weights of {_tower(loaded)} (DINOv2's are Apache-2.0).\n"),
    ]
    return "\n".join(parts)


def _tower(loaded: Trained) -> str:
    """What kind of tower it looks through, as transformers calls it."""
    return {"dinov2": "DINOv2"}.get(kind := loaded.model.config.vision_config.get("model_type", "dinov2"), kind)


def _tags(loaded: Trained) -> list[str]:
    config = loaded.model.config
    tower = [] if config.takes_features else [str(config.vision_config.get("model_type", "dinov2"))]
    return ["bitgen", "multimodal", *tower, *(["episodic-memory"] if config.use_memory else [])]


def _usage(loaded: Trained, merge_lora: bool) -> str:
    config = loaded.model.config
    has_adapters = loaded.model.vision_encoder is not None and config.vision_tuning == "lora"
    needs = "torch, torchvision, transformers and Pillow" + (", and peft" if has_adapters and not merge_lora else "")
    if not config.takes_features and config.vision_config.get("model_type") == TIMM:
        needs += ", and timm"
    image = "images=Image.open('photo.jpg'), " if not loaded.model.config.takes_features else ""
    lines = [
        f"Needs {needs}. The folder carries its own code, hence `trust_remote_code`.",
        "",
        "```python",
        *(["from PIL import Image"] if image else []),
        "from transformers import AutoModelForCausalLM, AutoProcessor",
        "",
        "model = AutoModelForCausalLM.from_pretrained(PATH, trust_remote_code=True).eval()",
        "processor = AutoProcessor.from_pretrained(PATH, trust_remote_code=True)",
        f"inputs = processor({image}text='A', return_tensors='pt')",
        "print(processor.decode(model.generate(**inputs, num_beams=3)[0], skip_special_tokens=True))",
        "```",
        "",
    ]
    if image:
        lines.append(
            f"Or `pipeline('{IMAGE_TASK}', model=PATH, trust_remote_code=True)('photo.jpg', text='A')`. With peft, "
            "LoRA fits on `target_modules=['query_key_value']`.\n"
        )
    if loaded.model.config.takes_features:
        tokens, dim = loaded.model.config.feature_tokens, loaded.model.config.feature_dim
        lines.append(
            f"The model has no vision tower. Images enter as `vision_features=` `[B, {tokens}, {dim}]`, computed as "
            "its training data were.\n"
        )
    if loaded.model.config.recall_tokens:
        lines.append(_speaking(loaded))
    if ANSWER in loaded.tokenizer.get_vocab():
        lines.append(_answering(loaded))
    return "\n".join(lines)


def _answering(loaded: Trained) -> str:
    """How to ask it about a picture."""
    thinks = loaded.config.reasoning.rationale == "clauses"
    why = " With `<think>` in its place it says first why, and then writes `<answer>` itself." if thinks else ""
    return f"""\
It answers questions about pictures. `<q>` and `<answer>` are tokens of its own. A question ends with its mark.{why}

```python
inputs = processor(images=Image.open('photo.jpg'), text='<q> what colour is the star?<answer>', return_tensors='pt')
said = model.generate(**inputs, max_new_tokens=112)
print(processor.decode(said[0], skip_special_tokens=True))
```

A box is written as four tokens, `<b0>` to `<b32>`: its left, top, right and bottom edge in 32nds of the picture. \
`<none>` says that there is no such thing.
"""


def _speaking(loaded: Trained) -> str:
    """How to teach it, and how it then speaks."""
    config = loaded.model.config
    taught, asked = "**processor(images=Image.open('rex.jpg'))", "images=Image.open('other.jpg'), "
    look = ""
    if config.takes_features:
        taught, asked, look = "vision_features=features", "", "vision_features=others, "
    return f"""\
It speaks from a memory: it is taught texts of at most {config.recall_tokens} tokens, of a picture or alone, in one \
step and without training. `generate(memory=...)` then says them where the picture, or without one the prompt, means \
what was taught, and is unchanged elsewhere.

```python
memory = model.new_memory()
memory.teach('this is Rex', processor.tokenizer, {taught})
memory.teach('Rex lives in Oslo', processor.tokenizer)
inputs = processor({asked}text='', return_tensors='pt')
said = model.generate(**inputs, {look}memory=memory)
print(processor.decode(said[0], skip_special_tokens=True))
memory.save('facts.safetensors')  # model.load_memory('facts.safetensors') reads it
```
"""


def _training(loaded: Trained, state: dict[str, Any], before: int | None) -> str:
    data, progress = loaded.config.data, state.get("progress", {})
    sources = parse_sources(data.train_data) if data.train_data is not None else []
    pairs = ", ".join(_source_name(path) for path, _ in sources)
    tokenizer = "trained on the corpus" if data.tokenizer == "train" else Path(data.tokenizer).name
    own, since = progress.get("words_seen", 0), "since it started from another run"
    words = [("words seen, all epochs counted", f"{(before or 0) + own:,}")] if before is not None else []
    words += [(f"words seen {since}, all epochs counted", f"{own:,}")] if before != 0 else []
    asked = loaded.config.reasoning.question_data
    rows = [
        *([("questions about pictures", _source_name(asked))] if asked is not None else []),
        ("image-caption pairs", pairs or "none"),
        ("text", _folder_name(data.text_data) if data.text_data is not None else "none"),
        *words,
        ("samples seen (pairs, sequences of text)", f"{progress.get('samples_seen', 0):,}"),
        ("optimizer steps", f"{state.get('step', 0):,}"),
        ("tokenizer", f"{tokenizer}, {len(loaded.tokenizer):,} tokens"),
        ("vision encoder", Path(loaded.config.vision.vision_encoder).name),
        ("phase", _phase(loaded, state)),
    ]
    return format_markdown(("", ""), rows) + "\n"


def _source_name(path: str) -> str:
    return "built-in rendered scenes" if path == SCENES else _folder_name(path)


def _folder_name(path: str) -> str:
    """A folder's own name: where it lay is nobody's business. With the one above where it only names a split."""
    return "/".join(Path(path).parts[-2:]) if Path(path).name in _SPLITS else Path(path).name


def _phase(loaded: Trained, state: dict[str, Any]) -> str:
    if not _has_second_phase(loaded):
        return "one: nothing of a vision tower is trained"
    if state.get("phase") == 1:
        return "1 of 2: exported before the vision tower's adapters began to train"
    return "2 of 2: the vision tower is tuned" if state.get("phase") == 2 else "unknown"


def _has_second_phase(loaded: Trained) -> bool:
    return loaded.model.vision_encoder is not None and loaded.model.config.vision_tuning != "frozen"


def _parameters(loaded: Trained, merge_lora: bool) -> str:
    counts = {name: count.total for name, count in count_parameters(loaded.model).components.items()}
    if merge_lora:
        counts.pop(LORA, None)
    rows = [(COMPONENTS.get(name, name), f"{count:,}") for name, count in counts.items()]
    return format_markdown(("component", "parameters"), [*rows, ("total", f"{sum(counts.values()):,}")]) + "\n"


def metrics_table(metrics: dict[str, Any]) -> str:
    """Results of ``src/evaluate.py`` as a table."""
    rows = [(name, f"{value:.2f}") for name, value in _flat(metrics) if not name.endswith("_ci95")]
    if not rows:
        return "None were given at export (`src/export.py --results FILE` takes those of `src/evaluate.py`).\n"
    return format_markdown(("metric", "value"), rows) + "\n"


def _flat(metrics: dict[str, Any], prefix: str = "", levels: int = 2) -> list[tuple[str, float]]:
    """Task and set; the hundred subtasks of BabyLM's sets stay in the results file."""
    found: list[tuple[str, float]] = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            control = " (control: every question with another image)" if value.get("shuffle_images") else ""
            found += _flat(value, f"{prefix}{name}{control} / ", levels - 1) if levels else []
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found


def _limits(loaded: Trained, state: dict[str, Any]) -> str:
    config = loaded.model.config
    lines = [
        f"- The context is {config.max_seq_len} tokens; of a longer text the last {config.max_seq_len} are read, with "
        "a warning.",
        "- As narrow as its training data, also in language: it states falsehoods, and repeats biases of its sources.",
        "- Small enough to study and to score sentences with; not a product, and not for decisions about people.",
    ]
    if config.use_memory:
        lines.append("- Its memory's state is part of the weights and does not change in use.")
    if not saw_pictures(loaded.config):
        lines.append("- Trained on text alone: it has never seen an image, and what reads images is untrained.")
    if loaded.config.objective.text_loss_weight == 0:
        lines.append("- Trained without the language loss: it matches images and texts, and does not write.")
    encoder = loaded.model.vision_encoder
    if (
        state.get("phase") == 1
        and _has_second_phase(loaded)
        and (encoder is None or encoder.tuning != "lora" or encoder.adapters_are_identity())
    ):
        lines.append("- Exported in phase 1: the vision tower is exactly the pretrained one.")
    return "\n".join(lines) + "\n"
