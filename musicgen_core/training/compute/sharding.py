"""Shard a model's weights, gradients and optimizer states over the ranks, with PyTorch's FSDP2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(model: nn.Module, blocks: Sequence[nn.Module], device: torch.device, dtype: torch.dtype) -> None:
    """Shard a model whose weights all ranks have; from here on its forward pass takes all ranks.

    A block's weights are gathered before it computes, and dropped afterwards. Its gradients are summed over the ranks
    in fp32 as they are sharded.

    Args:
        blocks: parts of the model that are gathered one at a time; the rest is gathered as a whole.
        dtype: precision of the gathered weights.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=None if dtype == torch.float32 else torch.float32,
    )
    for module in (*blocks, model):
        # The outermost module too: its gathered weights would outlive a validation of the moving average.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, since each rank's loss is its share of the mean
            module.set_force_sum_reduction_for_comms(True)


def full_tensor(value: Tensor) -> Tensor:
    """Return a tensor whole, where it is computed; all ranks must call this together if it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gathered(value: Any) -> Any:
    """Return a sharded tensor whole on the CPU of the main rank, and empty on the others; anything else as it is."""
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor().detach()
    return whole.cpu() if dist.get_rank() == 0 else torch.empty(0)


def like_shard(value: Any, parameter: Tensor) -> Any:
    """Return a copy of a value that every rank has whole: if the parameter it belongs to is sharded, of this shard."""
    if not isinstance(value, Tensor):
        return value
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value.clone()
    mesh = parameter.device_mesh
    # Without a source rank every rank keeps its part of its own copy, and nothing is sent.
    return distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None).clone()
