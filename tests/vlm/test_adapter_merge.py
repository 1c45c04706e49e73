"""Folders merged and unmerged: equal to peft's merge, back to the base, and refused where it would be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bitgen.commands import adapters as command
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapter_folder import Base, base_of, stored_weights, weights_hash
from bitgen.vlm.adapter_merge import NORMS, RECORD, merge_folder
from bitgen.vlm.adapters import attach, save_adapter
from support.hub_cache import as_in_the_cache
from support.language_models import tiny_lm

IDS = torch.tensor([[5, 9, 22, 41, 3, 7]])
CONFIGS = {
    "lora": AdapterConfig("lora", 4, 8.0, 0.0),
    "rslora": AdapterConfig("lora", 4, 8.0, 0.0, rslora=True, layers=(1,)),
    "dora": AdapterConfig("dora", 4, 8.0, 0.0),
}


def written(folder: Path, config: AdapterConfig, family: str = "llama", recorded: bool = True, **options) -> Path:
    """``base`` and ``adapter`` of a tiny model in a folder."""
    lm = tiny_lm(family)
    lm.save_pretrained(folder / "base", **options)
    (folder / "base" / "tokenizer.json").write_text('{"its": "tokenizer"}')
    (folder / "base" / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    attach(lm, config)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(lm, folder / "adapter", base_of(folder / "base") if recorded else Base("its base"))
    return folder


def logits(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llama", "llama_tied", "phi3", "gpt2"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_is_what_peft_merges_and_unmerged_is_the_base(tmp_path, kind: str, family: str) -> None:
    written(tmp_path, CONFIGS[kind], family)
    base, adapter, merged, again = (tmp_path / name for name in ("base", "adapter", "merged", "again"))
    command.main(["merge", "--base", str(base), "--adapter", str(adapter), "--output", str(merged)])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, adapter).eval()
    adapted = peft(input_ids=IDS).logits
    assert (adapted - logits(base)).abs().max() > 1e-3
    torch.testing.assert_close(logits(merged), adapted, rtol=0, atol=1e-5)
    expected = {name: t for name, t in peft.merge_and_unload().state_dict().items()}
    for name, tensor in load_file(merged / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)

    command.main(["unmerge", "--merged", str(merged), "--adapter", str(adapter), "--output", str(again)])
    original = dict(stored_weights(base))
    for name, tensor in stored_weights(again):
        torch.testing.assert_close(tensor, original.pop(name), rtol=1e-6, atol=1e-6)
    assert not original
    for folder in (merged, again):
        assert (folder / "tokenizer.json").read_text() == '{"its": "tokenizer"}'
        assert not (folder / "pytorch_model.bin").exists(), "it would hold the weights from before"
    assert (merged / NORMS).exists() == (kind == "dora")
    assert not (again / RECORD).exists() and not (again / NORMS).exists()


def test_files_types_and_names_stay_as_they_are(tmp_path) -> None:
    """Weights in bf16, over several files: each stays in its file, and the sum is rounded once."""
    written(tmp_path, CONFIGS["lora"], recorded=False)
    shutil.rmtree(tmp_path / "base")
    tiny_lm().bfloat16().save_pretrained(tmp_path / "base", max_shard_size="10KB")
    shards = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 2
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == shards
    before, after = dict(stored_weights(tmp_path / "base")), dict(stored_weights(tmp_path / "merged"))
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, tensor in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        expected = tensor
        if f"{key}.lora_A.weight" in factors:
            delta = 2.0 * factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
            expected = (tensor.float() + delta).bfloat16()
        assert torch.equal(after[name], expected) and after[name].dtype == torch.bfloat16
    assert logits(tmp_path / "merged").isfinite().all()


def test_the_hash_is_of_the_weights_and_not_of_their_files(tmp_path) -> None:
    tiny_lm().save_pretrained(tmp_path / "one")
    tiny_lm().save_pretrained(tmp_path / "many", max_shard_size="20KB")
    tiny_lm(seed=1).save_pretrained(tmp_path / "other")
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "many") != weights_hash(tmp_path / "other")


def test_checksums_of_an_export_are_renewed(tmp_path) -> None:
    written(tmp_path, CONFIGS["lora"])
    (tmp_path / "base" / CHECKSUMS).write_text(json.dumps({"model.safetensors": "0" * 64, "tokenizer.json": "1" * 64}))
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    from bitgen.machine.files import file_hash

    kept = json.loads((tmp_path / "merged" / CHECKSUMS).read_text())
    assert kept == {name: file_hash(tmp_path / "merged" / name) for name in ("model.safetensors", "tokenizer.json")}


def refused(capsys, *flags: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        command.main([str(flag) for flag in flags])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("error: ") == 1 and "Traceback" not in said
    return said


def test_another_base_is_refused(tmp_path, capsys) -> None:
    written(tmp_path, CONFIGS["lora"])
    tiny_lm(seed=3).save_pretrained(tmp_path / "other")
    flags = ("merge", "--adapter", tmp_path / "adapter", "--output", tmp_path / "merged", "--base")
    assert "holds others" in refused(capsys, *flags, tmp_path / "other")
    # Not the weights alone: a folder of the Hub's cache says which commit it holds.
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    shutil.copytree(tmp_path / "base", snapshot)
    merge_folder(snapshot, tmp_path / "adapter", tmp_path / "fine")
    record = tmp_path / "adapter" / "bitgen_adapter.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"revision": "b" * 40}))
    assert f"at revision {'b' * 40}" in refused(capsys, *flags, snapshot)
    assert not (tmp_path / "merged").exists()


def test_base_and_adapter_may_lie_in_the_hubs_cache(tmp_path) -> None:
    written(tmp_path, CONFIGS["dora"], max_shard_size="20KB")
    base, adapter = (as_in_the_cache(tmp_path / name, tmp_path / "hub") for name in ("base", "adapter"))
    assert len(list(base.glob("model-*.safetensors"))) > 1
    merge_folder(base, adapter, tmp_path / "merged")
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "plain")
    assert torch.equal(logits(tmp_path / "merged"), logits(tmp_path / "plain"))
    assert not any(path.is_symlink() for path in (tmp_path / "merged").iterdir())


@pytest.mark.parametrize(
    ("shape", "said"),
    [((1,), r"a magnitude \[1\]; with B \["), ((1, -1), r"a magnitude \[1, "), ((3,), r"magnitude \[3\]")],
)
def test_a_magnitude_of_another_shape_is_refused(tmp_path, shape, said) -> None:
    written(tmp_path, CONFIGS["dora"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "magnitude" in name)
    tensors[name] = tensors[name][None] if shape == (1, -1) else tensors[name][: shape[0]].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=said):
        merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("layers", [[None], ["x"], [1.5], "all", [True]])
def test_layers_that_are_no_numbers_are_named_with_their_file(tmp_path, layers) -> None:
    written(tmp_path, CONFIGS["lora"])
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": layers}))
    with pytest.raises(ValueError, match=r"adapter_config\.json: layers_to_transform holds .*, which is no number"):
        merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("revision", ["main", "v1.0", 5])
def test_a_branch_or_tag_is_not_compared_with_a_commit(tmp_path, revision) -> None:
    """peft writes what it was given; which commit that was it does not say. The weights are compared all the same."""
    written(tmp_path, CONFIGS["lora"])
    snapshot = tmp_path / "snapshots" / ("a" * 40)
    shutil.copytree(tmp_path / "base", snapshot)
    record = tmp_path / "adapter" / "bitgen_adapter.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"revision": revision}))
    merge_folder(snapshot, tmp_path / "adapter", tmp_path / "merged")
    tiny_lm(seed=3).save_pretrained(other := tmp_path / "other" / "snapshots" / ("a" * 40))
    with pytest.raises(ValueError, match="holds others"):
        merge_folder(other, tmp_path / "adapter", tmp_path / "again")


def test_quantised_bases_are_refused_with_the_reason(tmp_path, capsys) -> None:
    written(tmp_path, CONFIGS["dora"])
    path = tmp_path / "base" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    flags = ("--adapter", tmp_path / "adapter", "--output", tmp_path / "out")
    for said in (
        refused(capsys, "merge", "--base", tmp_path / "base", *flags),
        refused(capsys, "unmerge", "--merged", tmp_path / "base", *flags),
    ):
        assert "quantised (bitsandbytes)" in said and "rounded to a few bits" in said


def test_what_cannot_be_taken_out_is_refused(tmp_path, capsys) -> None:
    written(tmp_path, CONFIGS["dora"])
    written(tmp_path / "second", CONFIGS["lora"])
    merged, out = tmp_path / "merged", tmp_path / "out"
    merge_folder(tmp_path / "base", tmp_path / "adapter", merged)
    said = refused(capsys, "unmerge", "--merged", merged, "--adapter", tmp_path / "second/adapter", "--output", out)
    assert "another adapter was merged" in said
    said = refused(capsys, "unmerge", "--merged", tmp_path / "base", "--adapter", tmp_path / "adapter", "--output", out)
    assert "DoRA that was not merged by this command" in said
    (merged / NORMS).unlink()
    said = refused(capsys, "unmerge", "--merged", merged, "--adapter", tmp_path / "adapter", "--output", out)
    assert "cannot read its record of the merge" in said
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[next(name for name in tensors if "magnitude" in name)][0] = 0
    save_file(tensors, weights)
    merge_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "zero")
    said = refused(capsys, "unmerge", "--merged", tmp_path / "zero", "--adapter", tmp_path / "adapter", "--output", out)
    assert "a magnitude of 0" in said and not out.exists()


def test_an_adapter_is_merged_once(tmp_path, capsys, caplog) -> None:
    """Of an adapter that peft saved nothing else tells."""
    written(tmp_path, CONFIGS["lora"], recorded=False)
    written(tmp_path / "second", CONFIGS["lora"], recorded=False)
    weights = tmp_path / "second" / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    merge_folder(tmp_path / "base", adapter, merged)
    said = refused(capsys, "merge", "--base", merged, "--adapter", adapter, "--output", tmp_path / "twice")
    assert "is merged into" in said and "already" in said and not (tmp_path / "twice").exists()
    merge_folder(merged, tmp_path / "second" / "adapter", tmp_path / "both")
    assert "has another adapter in it, which unmerge cannot take out" in caplog.text


def test_bad_folders_are_one_message_each_and_leave_nothing(tmp_path, capsys) -> None:
    written(tmp_path, CONFIGS["lora"], recorded=False)
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"

    def said() -> str:
        found = refused(capsys, "merge", "--base", base, "--adapter", adapter, "--output", out)
        assert not list(tmp_path.glob(".out*"))
        return found

    out.mkdir()
    (out / "file").write_text("mine")
    assert "it is there already" in said() and (out / "file").read_text() == "mine"
    shutil.rmtree(out)
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights)
    assert "no weight model.layers.1.mlp.up_proj.weight" in said()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.full((48, 32), float("nan"))
    save_file(tensors, weights)
    assert "not finite" in said()
    weights.write_bytes(whole[:-9])
    assert "weights are damaged" in said()
    weights.unlink()
    assert "there is no model.safetensors" in said()
    base = tmp_path / "nowhere"
    assert "there is no such folder" in said()
    adapter = tmp_path / "nowhere"
    assert "cannot read the adapter there" in said()
