"""Every rank holds a shard of each parameter, of its gradient and of its moments (FSDP2, ``fully_shard``)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from bitgen.config.values import ConfigError
from bitgen.machine.parallel import Moments, Result, load_state_by_name, matched, state_by_name
from bitgen.machine.ranks import Processes


def elements_of_lists(module: nn.Module) -> list[nn.Module]:
    """The elements of every ``nn.ModuleList`` in ``module``: where a model keeps its layers."""
    lists = [inner for inner in module.modules() if isinstance(inner, nn.ModuleList)]
    return [element for inner in lists for element in inner if not isinstance(element, nn.ModuleList | nn.ModuleDict)]


class Sharded:
    """Parameters, gradients and moments in shards, gathered block by block while the block computes.

    The first :meth:`wrap` shards ``objective`` in place. Its class, names and attributes stay, but from then on its
    parameters are ``DTensor``s: none may be read or written except through the methods here, none is recognised by
    its ``data_ptr`` (tied weights are one object still), and the optimizer is built after it. Parameters without
    dimensions stay whole; their gradients are averaged here.

    What a model must keep to, for a rank that waits for another waits for ever:

    - Each block runs in each forward on every rank, as often. A module that some batches leave out is no block, or is
      called all the same with its result times zero.
    - ``forward`` returns tensors in tuples, named tuples, dicts or transformers' outputs, whose backward FSDP sees.
    - Anything else that computes with the model (``generate``, an encoder alone) goes through :meth:`call`.

    Args:
        blocks: what is gathered at a time, from the module given to ``wrap``; nested blocks are allowed. What lies
            outside of all blocks is gathered with the whole module, and stays so from the start of its forward to the
            end.

    Raises:
        ConfigError: there is one process only.
    """

    replicated = False

    def __init__(self, ranks: Processes, blocks: Callable[[nn.Module], list[nn.Module]] = elements_of_lists) -> None:
        if not ranks.is_distributed:
            raise ConfigError("Sharding a model takes several processes: start the run with torchrun, or unsharded.")
        self.ranks = ranks
        self.blocks = blocks

    def refuse(self, optimizer: str, precision: str) -> None:
        """See ``Parallel``.

        Raises:
            ConfigError: Muon, which needs whole matrices; fp16, whose loss scaling looks for infinities on each rank.
        """
        if optimizer != "adamw":
            raise ConfigError(
                f"optimizer={optimizer}: Muon needs whole matrices, and a sharded run holds pieces of them. Use "
                "--optimizer adamw, or do not shard."
            )
        if precision == "fp16":
            raise ConfigError(
                "precision=fp16: loss scaling would skip a step on the ranks alone whose shards overflow. Use "
                "--precision bf16 or fp32, or do not shard."
            )

    def wrap(self, objective: nn.Module, steady: bool) -> nn.Module:
        """Shard ``objective`` in place, the first time with rank 0's values, and return it; see ``Parallel``.

        Later calls find it sharded. FSDP reads ``requires_grad`` at each gathering, so it follows what was frozen or
        unfrozen since.

        Raises:
            ConfigError: not ``steady``.
            ValueError: a parameter is empty, not of floating point, or used in two blocks; or those that train have
                different formats.
        """
        if not steady:
            raise ConfigError(
                "A sharded model takes batches that reach every trainable parameter, for ranks whose batches differ in "
                "that would wait for one another for ever: run what a batch leaves out with weight zero, or do not "
                "shard."
            )
        dtypes = sorted({str(parameter.dtype) for parameter in objective.parameters() if parameter.requires_grad})
        if len(dtypes) > 1:
            raise ValueError(f"Parameters that train together must have one format, but they are {', '.join(dtypes)}.")
        if not isinstance(objective, FSDPModule):
            self._shard(objective)
        return objective

    def _shard(self, objective: nn.Module) -> None:
        names = {module: name for name, module in objective.named_modules()}
        chosen = set(self.blocks(objective)) - {objective}
        foreign = [type(block).__name__ for block in chosen if block not in names]
        if foreign:
            raise ValueError(f"Blocks that do not belong to the module to shard: {', '.join(foreign)}.")
        # Children come after their parents in named_modules, and are sharded before them.
        blocks = [module for module in reversed(names) if module in chosen and any(True for _ in module.parameters())]
        _check_parameters(objective, [names[block] for block in blocks])
        with torch.no_grad():
            for parameter in objective.parameters():
                whole = parameter.detach().contiguous()
                dist.broadcast(whole, src=0)
                parameter.copy_(whole)
        how: dict[str, Any] = dict(
            mesh=init_device_mesh(self.ranks.device.type, (self.ranks.world_size,)),
            # Gathered again in the backward, the root too: between calls all parameters are shards, and no write to
            # one is lost in a whole copy that is thrown away.
            reshard_after_forward=True,
            # Gradients of bfloat16 parameters lose digits in a sum.
            mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32),
            ignored_params={parameter for parameter in objective.parameters() if parameter.ndim == 0},
        )
        for module in (*blocks, objective):
            fully_shard(module, **how)
        root: Any = objective  # nn.Module declares no such attribute
        root._call = lambda function: function()
        register_fsdp_forward_method(root, "_call")

    def call(self, wrapped: nn.Module, function: Callable[[], Result]) -> Result:
        """The result of ``function``, which may use any part of ``wrapped``, but not call ``wrapped`` itself.

        Collective: each rank runs each block as often, so decode the same number of steps everywhere. Before the first
        :meth:`wrap` there is nothing to gather.
        """
        root: Any = wrapped
        return root._call(function) if isinstance(wrapped, FSDPModule) else function()

    @contextlib.contextmanager
    def accumulating(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """Earlier micro-steps add whole gradients on each rank; the last one averages their sum and keeps shards.

        Parameters are given up after each backward all the same: keeping them until the last one would hold the whole
        model.
        """
        assert isinstance(wrapped, FSDPModule)
        wrapped.set_requires_gradient_sync(last)
        yield
        if last:
            self._average_scalars([p for p in wrapped.parameters() if p.ndim == 0 and p.requires_grad])

    def _average_scalars(self, scalars: list[nn.Parameter]) -> None:
        if not scalars:
            return
        zero = torch.zeros((), device=self.ranks.device)
        has = [zero if parameter.grad is None else zero + 1 for parameter in scalars]
        gradients = [zero if parameter.grad is None else parameter.grad.float() for parameter in scalars]
        sums = torch.stack([*has, *gradients])
        dist.all_reduce(sums)
        counts, means = sums[: len(scalars)].tolist(), sums[len(scalars) :] / self.ranks.world_size
        for parameter, count, mean in zip(scalars, counts, means, strict=True):
            parameter.grad = mean.to(parameter.dtype) if count else None

    def clip(self, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
        """The norm of all shards of all gradients together; see ``Parallel``."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        squares = [_square_of_norm(group, self.ranks.device) for group in (shards, whole)]
        dist.all_reduce(squares[0])
        norm = (squares[0] + squares[1]).sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*shards, *whole):
            gradient.mul_(factor)
        return norm

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Parallel``. The tensors come to the CPU one after another, for a GPU might not hold them all.

        Tied weights, one object under two names as ``named_parameters(remove_duplicate=False)`` gives them, are one
        object again.
        """
        distinct = {id(tensor): tensor for tensor in named.values()}
        whole = {key: _whole(tensor.detach()) for key, tensor in distinct.items()}
        return {name: whole[id(tensor)] for name, tensor in named.items()}

    def scatter_(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """See ``Parallel``; before the first ``wrap`` it is a plain copy. Each rank takes its shard from its tensor."""
        for target, tensor in matched(module, tensors):
            target.copy_(_shard_like(tensor, target))

    def moments(self, optimizer: torch.optim.Optimizer) -> Moments:
        """See ``Parallel``. The tensors come to the CPU."""
        return {
            name: {key: _whole(value.detach()) for key, value in moments.items()}
            for name, moments in state_by_name(optimizer).items()
        }

    def load_moments(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See ``Parallel``. Each rank takes its shard from its tensor."""
        load_state_by_name(optimizer, state, _shard_like)


def _check_parameters(objective: nn.Module, blocks: list[str]) -> None:
    places: dict[nn.Parameter, dict[str, str]] = {}
    for name, parameter in objective.named_parameters(remove_duplicate=False):
        if not parameter.is_floating_point():
            raise ValueError(
                f"{name} is {parameter.dtype}: quantised weights cannot be sharded. Load them unquantised."
            )
        if parameter.numel() == 0:
            raise ValueError(f"{name} is empty: weights that a feature cache stands in for cannot be sharded.")
        block = max((block for block in blocks if name.startswith(f"{block}.")), key=len, default="")
        places.setdefault(parameter, {}).setdefault(block, name)
    for parameter, names in places.items():
        if len(names) > 1 and parameter.ndim:
            raise ValueError(
                f"{' and '.join(names.values())} are one parameter in different blocks: choose blocks so that all "
                "uses lie in one of them, or outside of all."
            )


def _square_of_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    zero = torch.zeros((), device=device)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.stack([zero, *norms]).square().sum()


def _whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _shard_like(tensor: Tensor, target: Tensor) -> Tensor:
    """``tensor`` on the device of ``target``, and this rank's shard of it alone where ``target`` is sharded."""
    tensor = tensor.detach().to(target.device)
    if not isinstance(target, DTensor) or not tensor.ndim:
        return tensor
    # A copy: a shard would keep the whole tensor's memory.
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None).clone()
