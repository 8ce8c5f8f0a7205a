"""The language model as a run trains all of its weights: plain PyTorch, sharded over the ranks.

Weights, gradients and optimizer states are in fp32; blocks compute in the precision of the execution, as audiocraft's
training does with autocast. Unlike there, nothing is dropped out but texts (`cfg_dropout`, `word_dropout`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.decoder import Condition, MusicgenLM, teacher_forcing
from musicgen_core.training.compute.attention import attention_kernels
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.losses import head_losses
from musicgen_core.training.compute.model import allow_shapes, check_determinism
from musicgen_core.training.compute.parameters import SeparateParameters
from musicgen_core.training.compute.sharding import gathered, like_shard, shard
from musicgen_core.training.processes.distributed import World

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class FullTrainingModel:
    """A language model of which every weight is trained; the text encoder isn't part of it.

    Args:
        lm: in fp32. With several ranks it is sharded, and only `losses` and `step` compute with it from then on.

    Attributes:
        trained: the model's parameters.
        execution: how to compute; `checkpointing` may be changed between steps.
    """

    def __init__(self, lm: MusicgenLM, execution: Execution, world: World | None = None) -> None:
        self.lm, self.execution = lm, execution
        self.device = lm.enc_to_dec_proj.weight.device
        self.is_sharded = world is not None and world.size > 1
        check_determinism(execution, self.device)
        lm.requires_grad_(True)
        if execution.compile:
            allow_shapes()
        blocks = lm.model.decoder.blocks()
        for block in blocks:
            compute = torch.compile(block.forward, dynamic=False) if execution.compile else block.forward
            block.forward = partial(self._block, compute)  # type: ignore[method-assign]
        dtype = _DTYPES[execution.precision]
        self._losses = _ClipLosses(lm, dtype)
        if self.is_sharded:
            shard(self._losses, blocks, self.device, dtype)
        self._parameters = dict(lm.named_parameters())
        self.trained = SeparateParameters(list(self._parameters.values()))

    def losses(self, codes: Tensor, frames: Tensor, condition: Condition, seeds: Tensor | None) -> Tensor:
        """Return the loss of each clip and codebook.

        Args:
            codes: [B, K, T], padded at the end.
            frames: [B], the length of each clip.
            condition: what the same clips are conditioned on.
            seeds: not used, as there is no dropout.

        Returns:
            [B, K], nats.
        """
        with attention_kernels(deterministic=False):
            losses: Tensor = self._losses(codes, frames, condition)
        return losses

    def step(self, codes: Tensor, frames: Tensor, condition: Condition, seeds: Tensor, scale: float) -> Tensor:
        """Add the gradients of the sum over clips of their mean losses, times `scale`, summed over all ranks.

        Returns:
            The losses [B, K] in nats, as `losses` gives them, unscaled.
        """
        losses = self.losses(codes, frames, condition, seeds)
        with attention_kernels(deterministic=False):  # for activations that are computed again
            (losses.mean(dim=1).sum() * scale).backward()
        return losses.detach()

    def zero_grad(self) -> None:
        self.trained.zero_grad()

    def release(self) -> bool:
        """Free cached memory; there are no CUDA graphs."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def weights(self) -> dict[str, Tensor]:
        """Return the weights by their names: those of training themselves, which the next step changes.

        Sharded ones are gathered in the main rank's memory; all ranks must call this together.
        """
        return {name: gathered(one.detach()) for name, one in self._parameters.items()}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Load weights, which every rank has whole.

        Raises:
            ModelError: names or shapes don't fit the model.
        """
        shapes = {name: one.shape for name, one in self._parameters.items()}
        given = {name: one.shape for name, one in weights.items()}
        if shapes != given:
            differing = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
            raise ModelError(
                message(
                    "the weights {where} don't fit the model: {number} tensors differ, such as {differing}",
                    where=where,
                    number=len(differing),
                    differing=differing[0],
                ),
                message("Use the model that they were trained from"),
            )
        for name, parameter in self._parameters.items():
            parameter.copy_(like_shard(weights[name], parameter))

    def _block(self, compute: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if not self.execution.checkpointing or not torch.is_grad_enabled():
            return compute(*inputs)
        again: Any = checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=False)
        output: Tensor = again
        return output


class _ClipLosses(nn.Module):
    """The losses of clips as the output of one module, in which FSDP gathers the weights outside the blocks."""

    def __init__(self, lm: MusicgenLM, dtype: torch.dtype) -> None:
        super().__init__()
        self.lm, self.dtype = lm, dtype

    def forward(self, codes: Tensor, frames: Tensor, condition: Condition) -> Tensor:
        lm, decoder = self.lm, self.lm.model.decoder
        is_half = self.dtype != torch.float32
        # Without autocast's cache, which would keep a copy of each weight until the end of the pass.
        with torch.autocast(codes.device.type, self.dtype if is_half else None, enabled=is_half, cache_enabled=False):
            inputs, targets, valid = teacher_forcing(codes, frames, lm.config.codes)
            text, attend = lm.project_text(condition)
            prefix = lm.prefix(condition, text)
            x = decoder.embed(inputs, prefix)
            x = x.to(self.dtype) if is_half else x  # in fp64 for tests
            for block in decoder.blocks():
                x = block(x, text, attend)
            x = x if prefix is None else prefix.behind(x, inputs.shape[-1])
            norm, heads = decoder.layer_norm, torch.cat([head.weight for head in lm.lm_heads])  # type: ignore[misc]
            return head_losses(x, (norm.weight, norm.bias), heads, targets, valid)
