"""Runs in a fresh process, in an empty folder, without this repository and without peft: `speak_export.py DIR ...`.

Teaches the export in each DIR two facts, and checks what it says with and without them. The facts end in DIR.facts, and
what was said with them in DIR.said.
"""

import sys

sys.modules["peft"] = None  # importing it fails, as where it is not installed
sys.modules["bitgen"] = None

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor  # noqa: E402


def refused(what, *arguments):
    try:
        what(*arguments)
    except ValueError as error:
        return str(error)
    raise AssertionError("it was not refused")


def speak(folder: str, other: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoProcessor.from_pretrained(folder, trust_remote_code=True, padding_side="left").tokenizer
    config = model.config
    assert (config.recall_tokens, config.recall_dim, config.recall_code) == (8, 16, 8)
    random = torch.Generator().manual_seed(4)
    name, shape = ("vision_features", (9, 6)) if config.takes_features else ("pixel_values", (3, 28, 28))
    pictures = torch.randn(3, *shape, generator=random)
    text = tokenizer(["the cat", "a dog runs on a hill"], padding=True, return_tensors="pt")
    questions, images = dict(text), {name: pictures[1:]}
    with torch.no_grad():
        model.recall.threshold.fill_(-2)  # whatever is asked means what was taught
        model.recall.word_worth[1].bias.fill_(-9)

    def said(memory=None, **options):
        options = {"max_new_tokens": 6, "eos_token_id": None, "memory": memory, **options}
        return torch.stack([model.generate(**inputs, **options)[:, -6:] for inputs in (questions, images)])

    plain, memory = said(), model.new_memory()
    assert torch.equal(said(memory), plain)
    memory.teach("the dog sat", tokenizer)
    memory.teach("this is a red dog", tokenizer, **{name: pictures[0]})
    found, beams = said(memory), said(memory, num_beams=3)
    assert not torch.equal(found[0], plain[0]) and not torch.equal(found[1], plain[1])
    assert not torch.equal(beams, said(num_beams=3))
    alone = tokenizer(["the cat"], return_tensors="pt")
    alone = model.generate(**alone, memory=memory, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(alone[0, -6:], found[0, 0])

    memory.save(f"{folder}.facts")
    assert torch.equal(said(model.load_memory(f"{folder}.facts")), found)
    with open(f"{folder}.facts", "rb") as file, open("damaged", "wb") as damaged:
        damaged.write(file.read()[:-1])
    assert "damaged is damaged" in refused(model.load_memory, "damaged")
    stranger = AutoModelForCausalLM.from_pretrained(other, trust_remote_code=True)
    assert "was made with another model" in refused(stranger.load_memory, f"{folder}.facts")

    save_file({"found": found, "beams": beams, "pictures": pictures, **text}, f"{folder}.said")
    memory.forget(1)
    assert not torch.equal(said(memory), found)
    memory.forget(0)
    assert torch.equal(said(memory), plain) and torch.equal(said(memory, num_beams=3), said(num_beams=3))
    print("spoke")


for number, folder in enumerate(sys.argv[1:], start=1):
    speak(folder, sys.argv[1:][number % len(sys.argv[1:])])
