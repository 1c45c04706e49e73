"""What trains when: LoRA frozen to the bit in phase 1, moved in phase 2, the base never; and what the log says."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file

from bitgen.checkpoint.format import checkpoint_folders, split_state
from bitgen.checkpoint.manifest import CheckpointError
from bitgen.machine.parallel import state_by_name
from bitgen.tasks.stage1_validation import HeldOut
from bitgen.trained import open_model
from support.runs import fit_until, metrics, same_checkpoint


def weights(trainer, part: str) -> dict[str, torch.Tensor]:
    model = trainer.objective.model
    named, roles = model.named_parameters(), model.roles()
    return {name: p.detach().clone() for name, p in named if roles[name].part == part}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_lora_stands_still_in_phase_1_and_moves_in_phase_2_while_the_base_never_does(build) -> None:
    trainer = build(learning_rate=1e-2)
    lora, base, decoder = (weights(trainer, part) for part in ("lora", "vision_base", "decoder"))
    assert lora and base
    fit_until(trainer, 4)
    assert trainer.phase == 1
    assert not changed(lora, weights(trainer, "lora"))
    assert len(changed(decoder, weights(trainer, "decoder"))) > len(decoder) // 2
    assert not any("lora_" in name for name in state_by_name(trainer.optimizer))
    resumed = build(learning_rate=1e-2, resume="auto")
    resumed.fit()
    assert resumed.phase == 2
    assert changed(lora, weights(resumed, "lora")) == set(lora)
    assert not changed(base, weights(resumed, "vision_base"))


def test_the_optimizer_carries_its_moments_over_the_boundary(build) -> None:
    trainer = build(optimizer="adamw")
    seen: list[tuple[dict, dict]] = []
    enter = trainer._enter_phase

    def moments_now() -> dict[str, dict[str, torch.Tensor]]:
        state = state_by_name(trainer.optimizer) if trainer.optimizer is not None else {}
        return {name: {key: value.clone() for key, value in moments.items()} for name, moments in state.items()}

    def spy() -> None:
        before = moments_now()
        enter()
        seen.append((before, moments_now()))

    trainer._enter_phase = spy
    trainer.fit()
    before, after = seen[1]
    assert before and set(before) == set(after)  # LoRA joins with none
    for name, moments in before.items():
        assert moments["step"].item() == 4
        assert all(torch.equal(value, after[name][key]) for key, value in moments.items()), name
    final = state_by_name(trainer.optimizer)
    assert {final[name]["step"].item() for name in final if "lora_" in name} == {4.0}


def test_the_log_can_be_searched_for_the_phases(build) -> None:
    trainer = build()
    trainer.fit()
    log = (trainer.monitor.log_dir / "training.log").read_text()
    parameters = trainer.objective.named_parameters()
    total = sum(p.numel() for name, p in parameters if p.requires_grad)
    lora = sum(p.numel() for p in weights(trainer, "lora").values())
    lines = [
        "| Phase 1\n",
        f"| LoRA adapters FROZEN | Trainable params: {total - lora:,}\n",
        "| Phase 2\n",
        f"| LoRA adapters UNFROZEN | Trainable params: {total:,}\n",
    ]
    positions = [log.index(line) for line in lines]
    assert positions == sorted(positions)


def test_the_rate_goes_on_over_the_boundary_in_the_log(build) -> None:
    trainer = build(lora_lr_factor=0.5, temperature_lr_factor=20.0)
    trainer.fit()
    records = {record["step"]: record for record in metrics(trainer.monitor.log_dir)}
    assert "train/lr/lora_a" not in records[4]
    assert records[4]["train/lr/new"] > records[5]["train/lr/new"] > 0.4 * records[4]["train/lr/new"]
    # lora_lr_warmup_steps is 2: half of its share at first.
    assert records[5]["train/lr/lora_a"] == pytest.approx(0.25 * records[5]["train/lr/new"])
    assert {record["train/lr/temperature"] for record in records.values()} == {0.06}


def test_frozen_tuning_stays_in_phase_1_and_says_so(build, caplog) -> None:
    trainer = build(vision_tuning="frozen")
    with caplog.at_level(logging.INFO):
        trainer.fit()
    assert trainer.phase == 1 and trainer.progress.step == 8
    assert "stays in phase 1: vision_tuning is 'frozen'" in caplog.text


def test_full_tuning_moves_the_base_in_phase_2_and_keeps_it_in_the_checkpoint(build) -> None:
    trainer = build(vision_tuning="full", learning_rate=1e-2)
    before = weights(trainer, "vision_base")
    trainer.fit()
    moved = changed(before, weights(trainer, "vision_base"))
    # A key's bias shifts all logits of a query alike, so that softmax gives it no gradient but rounding.
    without_gradient = ("mask_token", "k_proj.bias", "key.bias")
    assert {name for name in before if not name.endswith(without_gradient)} <= moved
    own, base = split_state(trainer.objective.model, trainer.objective.base_names())
    assert not base and any("vision_encoder" in name for name in own)
    same = open_model(trainer.store.folder).model.state_dict()
    assert not changed(trainer.objective.model.state_dict(), same)


def test_no_phase_1_means_lora_trains_from_the_first_step(build) -> None:
    trainer = build(lora_warmup_steps=0, max_steps=2, learning_rate=1e-2, warmup_steps=0, lora_lr_warmup_steps=0)
    before = weights(trainer, "lora")
    trainer.fit()
    assert changed(before, weights(trainer, "lora")) == set(before)


def test_a_checkpoint_leaves_the_base_out_and_loads_into_the_same_model(build) -> None:
    trainer = build(save_steps=4)
    trainer.fit()
    newest = checkpoint_folders(trainer.store.folder)[0]
    stored = load_file(newest / "model.safetensors")
    assert not any("vision_encoder" in name and "lora_" not in name for name in stored)
    assert len(list(trainer.store.folder.glob("vision_base-*.safetensors"))) == 1
    loaded = open_model(newest)
    assert not changed(trainer.objective.model.state_dict(), loaded.model.state_dict())
    assert not loaded.model.training and loaded.config.flat() == trainer.config.flat()
    assert len(loaded.tokenizer) <= 300


def test_a_base_that_was_tampered_with_is_noticed(build) -> None:
    trainer = build(max_steps=1)
    trainer.fit()
    [path] = trainer.store.folder.glob("vision_base-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="vision_base-.* is damaged"):
        open_model(trainer.store.folder)


def test_evaluation_gets_the_averaged_weights_and_resume_the_raw_ones(build) -> None:
    trainer = build(ema_decay=0.9, learning_rate=1e-2)
    trainer.fit()
    raw = trainer.objective.model.state_dict()
    loaded = open_model(trainer.store.folder).model.state_dict()
    averaged = trainer.average.tensors
    assert changed(raw, loaded) == {name for name in averaged if not torch.equal(averaged[name], raw[name])}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in averaged.items())
    resumed = build(ema_decay=0.9, learning_rate=1e-2, resume="auto")
    assert not changed(raw, resumed.objective.model.state_dict())


def test_the_last_steps_are_averaged_evenly_also_by_a_run_that_was_stopped(build) -> None:
    """The average is the mean of what each of the last steps saved; before them the weights are used as they are."""
    settings = dict(average_last=0.4, learning_rate=1e-2, save_steps=1, max_checkpoints_to_keep=9)
    trainer = build("straight", **settings)
    trainer.fit()
    folders = [trainer.store.folder / f"step-{step:08d}" for step in range(1, 9)]
    saved = [load_file(folder / "model.safetensors") for folder in folders]
    averaged = [load_file(folder / "ema.safetensors") for folder in folders]
    assert [bool(found) for found in averaged] == [False] * 5 + [True] * 3
    assert averaged[-1].keys() == {n for n, p in trainer.objective.model.named_parameters() if p.requires_grad}
    for name, tensor in averaged[-1].items():
        mean = torch.stack([weights[name].double() for weights in saved[5:]]).mean(dim=0)
        assert torch.allclose(tensor.double(), mean, atol=1e-6), name
    assert not changed(saved[4], open_model(folders[4]).model.state_dict())
    for stop_at in (3, 6):
        fit_until(build(f"stopped {stop_at}", **settings), stop_at)
        second = build(f"stopped {stop_at}", **settings, resume="auto")
        second.fit()
        same_checkpoint(trainer.store.folder, second.store.folder)


def test_averaging_is_switched_on_at_a_resume_and_a_longer_run_averages_its_own_last_steps(build) -> None:
    settings = dict(learning_rate=1e-2, save_steps=1, max_checkpoints_to_keep=16)
    straight = build("straight", **settings, average_last=0.4)
    straight.fit()
    fit_until(build("late", **settings), 5)
    late = build("late", **settings, average_last=0.4, resume="auto")
    late.fit()
    same_checkpoint(straight.store.folder, late.store.folder)
    with pytest.raises(CheckpointError, match="step-00000008: it holds no mean .* since step 2"):
        build("none", **settings).fit()
        build("none", **settings, max_steps=10, average_last=0.8, resume="auto")
    longer = build("late", **settings, max_steps=16, average_last=0.25, resume="auto")
    longer.fit()
    folders = [longer.store.folder / f"step-{step:08d}" for step in range(9, 17)]
    averaged = [load_file(folder / "ema.safetensors") for folder in folders]
    assert [bool(found) for found in averaged] == [False] * 4 + [True] * 4
    assert not changed(load_file(folders[0] / "model.safetensors"), open_model(folders[0]).model.state_dict())
    saved = [load_file(folder / "model.safetensors") for folder in folders[4:]]
    for name, tensor in averaged[-1].items():
        mean = torch.stack([weights[name].double() for weights in saved]).mean(dim=0)
        assert torch.allclose(tensor.double(), mean, atol=1e-6), name


def test_validation_after_each_phase_chooses_the_best_and_counts_what_was_seen(build, monkeypatch) -> None:
    monkeypatch.setattr(HeldOut, "_pictures", lambda *_: {})  # whose drawing takes most of the time
    trainer = build(val_data="scenes", eval_steps=3)
    trainer.fit()
    assert [entry["step"] for entry in trainer.scores] == [3, 4, 6, 8]
    best = max(trainer.scores, key=lambda entry: entry["score"])
    assert trainer.progress.best_score == best["score"]
    assert trainer.store.best.name == f"step-{trainer.progress.best_step:08d}"
    assert trainer.progress.samples_seen == 8 * 2 * 8
    assert trainer.progress.words_seen > 8 * 2 * 8 * 5
    # Recalls among fewer images are higher: the best is looked for anew.
    for more, best_step in (({}, trainer.progress.best_step), ({"val_max_images": 4}, None)):
        resumed = build(val_data="scenes", eval_steps=3, resume="auto", **more)
        assert resumed.progress.best_step == best_step and (resumed.progress.best_score is None) == bool(more)
        resumed.monitor.close()
    log = (trainer.monitor.log_dir / "metrics.jsonl").read_text()
    for name in ("val/t2i_R@1", "val/i2t_R@10", "val/itm_acc", "perf/data_wait_fraction", "perf/samples_per_sec"):
        assert f'"{name}"' in log


def test_accumulated_micro_batches_are_averaged_and_entered_after_the_step(build) -> None:
    trainer = build(max_steps=1, queue_size=40)
    lengths = []
    queue = trainer.objective.queue
    enqueue = queue.enqueue
    queue.enqueue = lambda entries: (lengths.append(len(queue)), enqueue(entries))
    trainer.fit()
    assert lengths == [0, 8] and len(queue) == 16


def test_every_trainable_parameter_gets_a_gradient_within_three_steps_of_each_phase(build) -> None:
    trainer = build(lora_warmup_steps=3, max_steps=6, learning_rate=1e-2, warmup_steps=0)
    reached: dict[int, set[str]] = {1: set(), 2: set()}
    trainable: dict[int, set[str]] = {1: set(), 2: set()}
    clamp = trainer.objective.clamp_temperature_

    def look() -> None:
        for name, parameter in trainer.objective.named_parameters():
            if parameter.requires_grad:
                trainable[trainer.phase].add(name)
                if parameter.grad is not None and parameter.grad.any():
                    reached[trainer.phase].add(name)
        clamp()

    trainer.objective.clamp_temperature_ = look
    trainer.fit()
    for phase in (1, 2):
        assert trainable[phase] - reached[phase] == set(), f"no gradient in phase {phase}"
    assert trainable[2] - trainable[1] == {f"model.{name}" for name in trainer.objective.model.adapter_names()}
