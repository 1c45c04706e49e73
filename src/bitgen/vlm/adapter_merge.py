"""An adapter folded into the weights of a model's folder, and taken out again, file by file and without the model.

What is written has the names, types and files of what was read, so that nothing but the adapted weights changes.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitgen.guards.json_files import BadJson, read_json
from bitgen.guards.printable import printable
from bitgen.machine.files import apply_umask, file_hash, replacing_folder
from bitgen.machine.hub import is_commit, revision_of
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.vlm.adapter_folder import WEIGHTS, AdapterFolder, read_adapter, weight_files, weights_hash

logger = logging.getLogger(__name__)
RECORD, NORMS = "bitgen_merge.json", "bitgen_merge_norms.safetensors"
# Weights in other formats would be those from before; the records are of an earlier merge.
_LEFT_OUT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_INDEX = ".index.json"
# From a weight `[out, in]`, its A, B and other parts, and its layer's name: the new weight.
Change = Callable[[Tensor, dict[str, Tensor], str], Tensor]


def merge_folder(base: str | Path, adapter: str | Path, output: str | Path) -> None:
    """Write the base with ``W + s B A`` in the place of W (LoRA), or ``m (W + s B A) / ||W + s B A||`` (DoRA).

    Raises:
        ValueError: the base is quantised, is not the adapter's, lacks a weight that the adapter changes, or has the
            adapter in it already; a file is missing or damaged; ``output`` holds something.
    """
    base, adapter, output = Path(base), Path(adapter), Path(output)
    found = _opened(base, adapter, output, "merged into")
    _check_base(base, found, adapter)
    _check_not_merged(base, adapter)
    scale, norms = found.config.scale, {}

    def merged(weight: Tensor, parts: dict[str, Tensor], name: str) -> Tensor:
        weight = weight + scale * parts["lora_B"] @ parts["lora_A"]
        if found.config.kind == "dora":
            norms[name] = torch.linalg.norm(weight, dim=1)
            weight = (parts["lora_magnitude_vector"] / norms[name])[:, None] * weight
        return weight

    def record(new: Path) -> None:
        kept = {"adapter_sha256": file_hash(adapter / WEIGHTS), **found.base._asdict()}
        (new / RECORD).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        if norms:  # what a merged DoRA no longer tells: its rows have the length m, whatever they had before
            save_file(norms, new / NORMS)
            apply_umask(new / NORMS)

    _write(base, found, output, merged, record)


def unmerge_folder(merged: str | Path, adapter: str | Path, output: str | Path) -> None:
    """Write the base again, from what :func:`merge_folder` made of it and the same adapter.

    The base comes back to the rounding of its type: about 1e-7 of a weight's size in float32, 4e-3 in bf16.

    Raises:
        ValueError: another adapter was merged; a DoRA that was merged elsewhere, or has a magnitude of 0; as
            :func:`merge_folder`.
    """
    merged, adapter, output = Path(merged), Path(adapter), Path(output)
    found = _opened(merged, adapter, output, "taken out of")
    norms = _merge_record(merged, adapter, found)
    scale = found.config.scale

    def unmerged(weight: Tensor, parts: dict[str, Tensor], name: str) -> Tensor:
        if found.config.kind == "dora":
            magnitude = parts["lora_magnitude_vector"]
            if not magnitude.all():
                raise ValueError(f"{name} has a magnitude of 0: its row was lost in the merge. Keep the base itself")
            weight = (norms[name] / magnitude)[:, None] * weight
        return weight - scale * parts["lora_B"] @ parts["lora_A"]

    _write(merged, found, output, unmerged, lambda new: None)


def _opened(model: Path, adapter: Path, output: Path, verb: str) -> AdapterFolder:
    """The adapter, after what can be refused before any work."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: it is there already; name a folder that is empty or not there yet")
    found = read_adapter(adapter)
    weight_files(model)
    try:
        config = read_json(model / "config.json", dict)
    except (OSError, BadJson) as error:
        raise ValueError(f"{model / 'config.json'}: {printable(error)}. Name the folder of a model") from error
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise ValueError(
            f"{model}: its weights are quantised ({printable(method, 40)}), and an adapter cannot be {verb} them: the "
            "sum would be rounded to a few bits again, which loses much of the adapter and cannot be undone. Name the "
            "base in float32, bf16 or fp16"
        )
    return found


def _check_base(base: Path, found: AdapterFolder, adapter: Path) -> None:
    """Refuse another model than the adapter was trained on, as far as the adapter's own record tells."""
    known, revision = found.base, revision_of(base)
    trained = f"the adapter {adapter} was trained on {printable(known.name, 200) or 'a model without a name'}"
    # Where peft wrote a branch or a tag it does not say which commit that was.
    if is_commit(known.revision) and revision and known.revision != revision:
        raise ValueError(
            f"{trained} at revision {known.revision}; {base} holds {revision}. Name the folder of that one"
        )
    if known.sha256 is None:
        logger.warning("%s, whose weights it does not record: whether %s holds them is not checked", trained, base)
    elif (has := weights_hash(base)) != known.sha256:
        raise ValueError(
            f"{trained} with weights {printable(known.sha256, 12)}; {base} holds others ({has[:12]}...). Name the base "
            "that it was trained on"
        )


def _check_not_merged(base: Path, adapter: Path) -> None:
    """Refuse an adapter that is in the base already; of another one, say what merging two loses."""
    if not (base / RECORD).exists():
        return
    try:
        kept = read_json(base / RECORD, dict, {"adapter_sha256": str})
    except (OSError, BadJson) as error:
        raise ValueError(f"{base}: cannot read its record of a merge ({printable(error)})") from error
    if kept["adapter_sha256"] == file_hash(adapter / WEIGHTS):
        raise ValueError(f"the adapter {adapter} is merged into {base} already: name the base that it was trained on")
    logger.warning("%s has another adapter in it, which unmerge cannot take out of what is written now", base)


def _merge_record(merged: Path, adapter: Path, found: AdapterFolder) -> dict[str, Tensor]:
    """What merging left: the norms that a DoRA needs."""
    dora = found.config.kind == "dora"
    if not (merged / RECORD).exists():
        if dora:
            raise ValueError(
                f"{merged}: a DoRA that was not merged by this command cannot be taken out: merging sets the length of "
                "each row, and what it was before is nowhere. Keep the base itself"
            )
        logger.warning("%s has no record of a merge: whether %s was merged into it is not checked", merged, adapter)
        return {}
    try:
        kept = read_json(merged / RECORD, dict, {"adapter_sha256": str})
        norms = load_file(merged / NORMS) if dora else {}
    except (OSError, BadJson, SafetensorError) as error:
        raise ValueError(f"{merged}: cannot read its record of the merge ({printable(error)}). Merge again") from error
    if kept["adapter_sha256"] != file_hash(adapter / WEIGHTS):
        raise ValueError(f"{merged}: another adapter was merged into it than {adapter}. Name that one")
    return norms


def _write(model: Path, found: AdapterFolder, output: Path, change: Change, finish: Callable[[Path], None]) -> None:
    layers, files = found.by_layer(), weight_files(model)
    left = set(layers)
    try:
        with replacing_folder(output, replace=False) as new:
            _copy_the_rest(model, new)
            for path in files:
                with safe_open(path, "pt") as file:
                    metadata = file.metadata()
                tensors = load_file(path)
                for name in sorted(left):
                    if (key := f"{name}.weight") in tensors:
                        tensors[key] = _changed(tensors[key], layers[name], name, found.fan_in_fan_out, change)
                        left.discard(name)
                save_file(tensors, new / path.name, metadata)
                apply_umask(new / path.name)
            if left:
                raise ValueError(
                    f"{model}: there is no weight {printable(min(left), 200)}.weight in its files, which the adapter "
                    "changes. Name the base that the adapter was trained on"
                )
            _renew_checksums(new)
            finish(new)
    except SafetensorError as error:
        raise ValueError(f"{model}: its weights are damaged ({printable(error, 200)}). Restore a copy") from error
    except OSError as error:
        raise ValueError(f"{output}: cannot write there ({error.strerror or printable(error)})") from error


def _changed(stored: Tensor, parts: dict[str, Tensor], name: str, transposed: bool, change: Change) -> Tensor:
    """The new weight in the type and layout of the stored one; computed in float32, or float64 where it is stored."""
    exact = torch.promote_types(stored.dtype, torch.float32)
    weight = stored.to(exact).T if transposed else stored.to(exact)
    parts = {part: tensor.to(exact) for part, tensor in parts.items()}
    if weight.shape != (shape := (parts["lora_B"].shape[0], parts["lora_A"].shape[1])):
        raise ValueError(f"{name} is {list(weight.shape)} in the model and {list(shape)} in the adapter: of another")
    new = change(weight, parts, name)
    if not torch.isfinite(new).all():
        raise ValueError(f"{name}: the new weights are not finite; the adapter or the model is broken")
    return (new.T if transposed else new).to(stored.dtype).contiguous()


def _copy_the_rest(model: Path, new: Path) -> None:
    """Configuration, tokenizer, code: every file that is neither weights nor a record of ours."""
    for path in sorted(model.iterdir()):
        if path.is_file() and path.suffix not in _LEFT_OUT and path.name != RECORD:
            if path.name.endswith(_INDEX) and not path.name.endswith(f".safetensors{_INDEX}"):
                continue
            shutil.copyfile(path, new / path.name)


def _renew_checksums(new: Path) -> None:
    """Of the exports of BitGen, whose loader compares them."""
    path = new / CHECKSUMS
    if path.exists():
        names = [name for name in read_json(path, dict) if (new / name).is_file()]
        path.write_text(json.dumps({name: file_hash(new / name) for name in names}, indent=2) + "\n", encoding="utf-8")
