"""LoRA and DoRA on a base in 4 and 8 bits (bitsandbytes, on the CPU)."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from bitgen.config import ConfigError
from bitgen.vlm.adapter_config import AdapterConfig
from bitgen.vlm.adapter_folder import base_of
from bitgen.vlm.adapters import attach, load_adapter, merge, save_adapter, targets_of
from support.runs import environment

pytest.importorskip("bitsandbytes", reason="the optional extra for 4-bit and 8-bit bases")
SETTINGS = {
    "4-bit": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "8-bit": dict(load_in_8bit=True),
}
IDS = torch.tensor([[5, 9, 22, 41, 3, 7, 11, 30]])


def base(folder) -> LlamaForCausalLM:
    """Of widths that are multiples of 64, the size of a block of 4-bit values."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)
    lm = LlamaForCausalLM(LlamaConfig(**sizes))
    lm.save_pretrained(folder)
    return lm


def quantised(folder, bits: str):
    settings = BitsAndBytesConfig(**SETTINGS[bits], llm_int8_skip_modules=["lm_head"])
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32)


@pytest.mark.parametrize(("bits", "kind"), [("4-bit", "lora"), ("4-bit", "dora"), ("8-bit", "lora")])
def test_adapters_on_few_bits_train_save_load_and_are_not_merged(tmp_path, bits: str, kind: str) -> None:
    plain = base(tmp_path / "base")
    lm = quantised(tmp_path / "base", bits)
    names = attach(lm, AdapterConfig(kind, 4, 8.0, 0.0))
    assert names == targets_of(plain) and len(names) == 14
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    lm.train()  # in eval mode bitsandbytes packs 4-bit weights anew for the CPU
    frozen = {name: p.clone() for name, p in lm.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(15):
        loss = lm(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(p, frozen[name]) for name, p in lm.named_parameters() if name in frozen)
    with pytest.raises(ValueError, match=f"is {bits}: merging would round"):
        merge(lm)
    save_adapter(lm, tmp_path / "adapter", base_of(tmp_path / "base"))
    again = quantised(tmp_path / "base", bits)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again.eval()(input_ids=IDS).logits, lm.eval()(input_ids=IDS).logits)


def test_dora_on_8_bit_layers_of_a_cpu_is_refused(tmp_path) -> None:
    """There peft moves the weights in each forward pass, which loses their scale, and the second one fails."""
    base(tmp_path)
    with pytest.raises(ConfigError, match="DoRA on 8-bit layers does not run on a CPU.*4 bits"):
        attach(quantised(tmp_path, "8-bit"), AdapterConfig("dora", 4))


def test_importing_us_says_nothing_of_a_faster_package_but_all_else(caplog) -> None:
    code = "import bitgen, bitsandbytes, bitgen.vlm.adapters"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert "gemm_4bit" not in said.stderr
    theirs, line = logging.getLogger("bitsandbytes.backends.cpu.ops"), "Failed to load CPU gemm_4bit_forward: %s"
    theirs.warning(line, ModuleNotFoundError("No module named 'kernels'"))
    theirs.warning(line, OSError("a damaged file"))
    assert [record.getMessage() for record in caplog.records] == [line % "a damaged file"]
