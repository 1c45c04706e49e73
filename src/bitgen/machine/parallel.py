"""How several processes share the work of a training loop: every rank holds the whole model, or a shard of it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitgen.machine.ranks import Processes

Moments = dict[str, dict[str, Tensor]]
# What torch calls it that buffers are not copied from rank 0 before each forward; the first name is that of 2.14 on.
_BUFFERS = next(
    name for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)  # fmt: skip
Result = TypeVar("Result")


class Parallel(Protocol):
    """What a training loop asks of the processes it runs on; the same calls for one process and for many.

    A collective method must be called by every rank, in the same order. In a phase the loop calls::

        parallel.refuse(optimizer, precision)       # once, before anything is built
        self.wrapped = objective                    # the previous wrapper must not be referenced any more
        self.wrapped = parallel.wrap(objective, steady)
        optimizer = ...                             # over objective.named_parameters(), groups with "names"
        parallel.load_moments(optimizer, moments)
        for batch in micro_steps:
            with parallel.accumulating(self.wrapped, last):
                (self.wrapped(batch).loss / len(micro_steps)).backward()
        norm = parallel.clip(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    Gradients are the mean over ranks of the sum over micro-steps.
    """

    ranks: Processes
    # Whether every rank holds the whole model: then rank 0 alone may validate and save. Otherwise each forward of the
    # model, and ``gather``, is every rank's affair.
    replicated: bool

    def refuse(self, optimizer: str, precision: str) -> None:
        """Raise ``ConfigError`` for settings (by the names of the config) that do not work with this way of sharing."""
        ...

    def wrap(self, objective: nn.Module, steady: bool) -> nn.Module:
        """The module to call in place of ``objective``, at each phase start, with ``requires_grad`` set. Collective.

        The optimizer is built afterwards, from ``objective.named_parameters()``: the parameters may be other objects
        than before. Their names stay.

        Args:
            steady: each forward reaches every trainable parameter.

        Raises:
            RuntimeError: the previous wrapper is still referenced.
            ValueError: a parameter cannot be shared out; the message names it.
        """
        ...

    def call(self, wrapped: nn.Module, function: Callable[[], Result]) -> Result:
        """The result of ``function``, which computes with parts of ``wrapped`` in another way than its ``forward``.

        Where ranks are no replicas it is collective: each of them runs each block as often.
        """
        ...

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Surrounds forward and backward of a micro-step: the last one of a step alone reduces gradients over ranks."""
        ...

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradients in place to ``max_norm`` at most; the total norm before, a plain 0-d tensor. Collective.

        Every rank gets the same norm and, if it is not finite, the same non-finite value.
        """
        ...

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors of named parameters and buffers, detached, on every rank. Collective.

        They may share memory with the model: copy what must outlive the next step.
        """
        ...

    def scatter_(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Copy whole tensors, the same on each rank, into the parameters and buffers of those names. Collective.

        Names that ``tensors`` lacks keep their values.

        Raises:
            ValueError: ``module`` has no tensor of that name, or it has another shape.
        """
        ...

    def moments(self, optimizer: torch.optim.Optimizer) -> Moments:
        """The optimizer's state as whole tensors under parameters' names, on every rank. Collective.

        Groups carry ``names`` beside ``params``. Parameters that have no state yet are left out. The result does not
        depend on how the processes share the work: another kind of ``Parallel``, or number of ranks, loads it.
        """
        ...

    def load_moments(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give parameters their state back by name; names that ``state`` lacks start without any. Collective.

        Raises:
            ValueError: a moment's shape is not its parameter's.
        """
        ...


class Replicated:
    """Every rank holds the whole model: one process, or ``DistributedDataParallel`` over several."""

    replicated = True

    def __init__(self, ranks: Processes) -> None:
        self.ranks = ranks
        self._last: weakref.ref[nn.Module] | None = None

    def refuse(self, optimizer: str, precision: str) -> None:
        """Nothing is refused."""

    def wrap(self, objective: nn.Module, steady: bool) -> nn.Module:
        """``objective`` itself for one process; see :class:`Parallel`.

        A wrapper never learns of parameters that are unfrozen after it was made: they would not be synchronised.
        """
        if not self.ranks.is_distributed:
            return objective
        gc.collect()  # the old wrapper's hooks sit on the parameters until it is gone
        if self._last is not None and self._last() is not None:
            raise RuntimeError(
                "The wrapper of the previous phase is still referenced, so gradients would be reduced twice: drop it "
                "before wrapping again."
            )
        device = self.ranks.device
        options: dict[str, Any] = {_BUFFERS: False}
        wrapped = DistributedDataParallel(
            objective,
            device_ids=[device.index] if device.type == "cuda" else None,
            find_unused_parameters=not steady,
            **options,
        )
        self._last = weakref.ref(wrapped)
        return wrapped

    def call(self, wrapped: nn.Module, function: Callable[[], Result]) -> Result:
        """Just that; no communication."""
        return function()

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients of the earlier micro-steps stay local; the last backward averages their sum over the ranks."""
        if last or not self.ranks.is_distributed:
            return contextlib.nullcontext()
        assert isinstance(wrapped, DistributedDataParallel)
        return wrapped.no_sync()

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """``clip_grad_norm_``: the gradients are whole, and equal on all ranks."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors themselves; no communication."""
        return {name: tensor.detach() for name, tensor in named.items()}

    def scatter_(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """A plain copy; no communication."""
        for target, tensor in matched(module, tensors):
            target.copy_(tensor)

    def moments(self, optimizer: torch.optim.Optimizer) -> Moments:
        """The state itself, not a copy; no communication."""
        return state_by_name(optimizer)

    def load_moments(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See :class:`Parallel`; no communication."""
        load_state_by_name(optimizer, state)


def matched(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a parameter or buffer of ``module``, detached, and the whole tensor of its name.

    Raises:
        ValueError: there is no such name in ``module``, or the shapes differ.
    """
    targets: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    targets |= dict(module.named_buffers(remove_duplicate=False))
    unknown = sorted(set(tensors) - set(targets))
    if unknown:
        raise ValueError(f"The module has no tensor named {', '.join(unknown)}: was it built with the same settings?")
    pairs = []
    for name, tensor in tensors.items():
        if targets[name].shape != tensor.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, and {list(targets[name].shape)} in the module.")
        pairs.append((targets[name].detach(), tensor.detach()))
    return pairs


# ---- an optimizer's state under parameters' names: the numbers of torch's own state dict change with the groups ----


def state_by_name(optimizer: torch.optim.Optimizer) -> Moments:
    """The optimizer's state under the parameters' names that its groups carry."""
    state: Moments = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if parameter in optimizer.state:
                state[name] = dict(optimizer.state[parameter])
    return state


def load_state_by_name(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Mapping[str, Tensor]],
    place: Callable[[Tensor, Tensor], Tensor] = lambda value, parameter: value.detach().to(parameter.device),
) -> list[str]:
    """Give parameters their moments back by name; returns the names that start without any.

    Args:
        place: what to keep of a moment, given it and its parameter.

    Raises:
        ValueError: a moment's shape is not its parameter's.
    """
    fresh = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name not in state:
                fresh.append(name)
                continue
            moments = {}
            for key, value in state[name].items():
                by_row = parameter.ndim == 2 and value.shape == (len(parameter), 1)
                if value.ndim and value.shape != parameter.shape and not by_row:
                    raise ValueError(
                        f"Optimizer state of {name} is {list(value.shape)}, the parameter {list(parameter.shape)}."
                    )
                moments[key] = place(value, parameter)
            optimizer.state[parameter] = moments
    return fresh
