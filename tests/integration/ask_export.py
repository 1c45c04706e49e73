"""Runs in a fresh process, in an empty folder, without this repository and without peft: `ask_export.py DIR PICTURE`.

Asks the export in DIR about the picture, and prints as JSON the ids of each prompt and what was written after it.
"""

import json
import sys

sys.modules["peft"] = None  # importing it fails, as where it is not installed
sys.modules["bitgen"] = None

from PIL import Image  # noqa: E402
from transformers import AutoModelForCausalLM, AutoProcessor  # noqa: E402

folder, picture = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
found = []
for ending in ("<answer>", "<think>"):
    prompt = f"<q> what colour is the star?{ending}"
    inputs = processor(images=Image.open(picture), text=prompt, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    length = inputs["input_ids"].shape[1]
    found.append([inputs["input_ids"][0].tolist(), processor.decode(said[0, length:], skip_special_tokens=True)])
print(json.dumps(found))
