"""The language model and its adapter as training computes them: packed, fused or compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from musicgen_core.errors import ConfigError, raise_if_interrupted
from musicgen_core.language import message
from musicgen_core.model.decoder import Condition, MusicgenLM, Prefix, teacher_forcing
from musicgen_core.model.lora import adapter_state, set_adapter_state
from musicgen_core.training.compute import dropout
from musicgen_core.training.compute.attention import attention_kernels
from musicgen_core.training.compute.blocks import (
    STREAMS,
    Blocks,
    Inputs,
    PeftBlocks,
    PlainBlocks,
    adapter_parameters,
    can_pack,
)
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.losses import head_losses
from musicgen_core.training.compute.parameters import FlatParameters

logger = logging.getLogger(__name__)
Result = TypeVar("Result", Tensor, None)

SHAPES = 64
"""Limit of compilations of a function, one for each shape of batch; PyTorch's default is 8."""


@dataclass(frozen=True)
class _Embedded:
    """A batch as the blocks read it.

    Attributes:
        x: [B, S, D], the embedded codes, or [B, P + S, D] behind a prefix.
        inputs: what the blocks share.
        prefix: the prefix of a model that takes a melody.
        targets: [B, K, S], next codes.
        valid: [B, K, S], True where a prediction counts.
    """

    x: Tensor
    inputs: Inputs
    prefix: Prefix | None
    targets: Tensor
    valid: Tensor


class TrainingModel:
    """A frozen language model with peft's adapter on it.

    With fused kernels the parameters are read from copies, which `zero_grad` updates before each step. With FP8 the
    model's own forward pass no longer works, since its weights are dropped.

    Args:
        peft_model: the result of `add_lora`.
        dropout_p: probability of LoRA's dropout.
        fused: whether to use the fused kernels; by default wherever they work.

    Raises:
        ConfigError: FP8 with DoRA or with only some layers adapted; or determinism without the fused kernels on a GPU.

    Attributes:
        trained: the adapter's parameters and their gradients as one tensor each.
        execution: how to compute; `checkpointing` may be changed between steps if `release` is called afterwards.
    """

    is_sharded = False
    """Each rank has the whole adapter."""

    def __init__(self, peft_model: Any, dropout_p: float, execution: Execution, fused: bool | None = None) -> None:
        self._peft_model = peft_model
        self.lm: MusicgenLM = peft_model.base_model.model
        self.dropout = dropout_p
        self.execution = execution
        self.device = self.lm.enc_to_dec_proj.weight.device
        self.parameters = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
        norm = self.lm.model.decoder.layer_norm
        self._norm = (norm.weight, norm.bias)
        heads = [head.weight for head in self.lm.lm_heads]
        self._heads = torch.cat(heads)
        for head, part in zip(heads, self._heads.chunk(len(heads)), strict=True):
            head.data = part
        if execution.compile:
            allow_shapes()
        self._head_losses = torch.compile(head_losses, dynamic=False) if execution.compile else head_losses
        layers = self.lm.model.decoder.blocks()
        packed = can_pack(layers)
        if execution.precision == "fp8" and not packed:
            raise ConfigError(
                message(
                    "base_precision fp8 can't be combined with lora_dora, or with lora_targets that leave out layers"
                ),
                message("Give --base-precision bf16"),
            )
        of_layers = [parameter for layer in layers for parameter in adapter_parameters(layer)] if packed else None
        self.trained = FlatParameters(self.parameters, of_layers or self.parameters)
        self._fused = packed and (fused_kernels_work(self.device, execution) if fused is None else fused)
        if not self._fused:
            check_determinism(execution, self.device)
        if self._fused:
            from musicgen_core.training.compute.fused_blocks import FusedBlocks  # Triton is not everywhere

            self._blocks: Blocks = FusedBlocks(
                layers=layers,
                heads=self.lm.config.heads,
                execution=execution,
                parameters=self.trained.whole.detach(),
                gradients=self.trained.gradient,
            )
        elif packed:
            self._blocks = PlainBlocks(layers, self.lm.config.heads, execution.compile)
        else:
            self._blocks = PeftBlocks(layers)
        with_graphs = self._fused and self.device.type == "cuda"
        self._run = Graphs(self._step) if with_graphs else self._step
        self._refresh = Graphs(self._blocks.refresh) if with_graphs else self._blocks.refresh
        self.zero_grad()

    def losses(self, codes: Tensor, frames: Tensor, condition: Condition, seeds: Tensor | None) -> Tensor:
        """Return the loss of each clip and codebook, with fused kernels without gradients: only `step` computes them.

        Args:
            codes: [B, K, T], padded at the end.
            frames: [B], the length of each clip.
            condition: of the same clips.
            seeds: [B], the clips' seeds of LoRA's dropout; None for no dropout.

        Returns:
            [B, K], nats.
        """
        self._refresh()
        batch = self._embed(codes, frames, condition, seeds)
        with attention_kernels(self.execution.deterministic):
            x = self._blocks.forward(batch.x, batch.inputs, self.execution.checkpointing)
            return self._losses_of(x, batch)

    def step(self, codes: Tensor, frames: Tensor, condition: Condition, seeds: Tensor, scale: float) -> Tensor:
        """Add the gradients of the sum over clips of their mean losses, times `scale`.

        Steps of equal shapes are replayed as a CUDA graph.

        Returns:
            The losses [B, K] in nats, as `losses` gives them, unscaled.
        """
        # 0-dimensional, so that it doesn't promote the loss to its precision
        factor = torch.full((), scale, dtype=torch.float64, device=self.device)
        chroma = () if condition.chroma is None else (condition.chroma,)
        return self._run(codes, frames, condition.states, condition.mask, seeds, factor, *chroma)

    def zero_grad(self) -> None:
        """Reset the gradients, and update the copies that the fused kernels read."""
        self.trained.zero_grad()
        self._refresh()  # always: a fused optimizer changes parameters without raising their version

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the adapter's tensors on the CPU, by peft's names."""
        return adapter_state(self._peft_model)

    def load(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Load the adapter's tensors.

        Raises:
            AdapterError: names or shapes don't fit the model.
        """
        set_adapter_state(self._peft_model, weights, where)

    def release(self) -> bool:
        """Free cached memory and CUDA graphs, and return whether there were graphs."""
        held = isinstance(self._run, Graphs) and self._run.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return held

    def _step(
        self,
        codes: Tensor,
        frames: Tensor,
        states: Tensor,
        mask: Tensor,
        seeds: Tensor,
        scale: Tensor,
        chroma: Tensor | None = None,
    ) -> Tensor:
        batch = self._embed(codes, frames, Condition(states, mask, chroma), seeds)
        with attention_kernels(self.execution.deterministic), torch.set_grad_enabled(not self._fused):
            x, backward = self._blocks.differentiable(batch.x, batch.inputs, self.execution.checkpointing)
            with torch.enable_grad():
                losses = self._losses_of(x, batch)
                backward(losses.mean(dim=1).sum() * scale)
        return losses.detach()

    def _losses_of(self, x: Tensor, batch: _Embedded) -> Tensor:
        """Return the losses [B, K] from the last block's output x."""
        if batch.prefix is not None:
            x = batch.prefix.behind(x, batch.targets.shape[-1])
        return self._head_losses(x, self._norm, self._heads, batch.targets, batch.valid)

    def _embed(self, codes: Tensor, frames: Tensor, condition: Condition, seeds: Tensor | None) -> _Embedded:
        sequence, targets, valid = teacher_forcing(codes, frames, self.lm.config.codes)
        states, attend = self.lm.project_text(condition)
        prefix = self.lm.prefix(condition, states)
        x = self.lm.model.decoder.embed(sequence, prefix)
        p = self.dropout if seeds is not None else 0.0
        seeds = seeds if seeds is not None else frames.int()
        inputs = Inputs(
            text=states.flatten(0, 1),
            attend=attend,
            dropout_seeds=self._dropout_seeds(seeds, x.shape[1], STREAMS),
            text_dropout_seeds=self._dropout_seeds(seeds, states.shape[1], 1)[:, 0],
            p=p,
        )
        return _Embedded(x=x, inputs=inputs, prefix=prefix, targets=targets, valid=valid)

    def _dropout_seeds(self, seeds: Tensor, rows: int, streams: int) -> Tensor:
        """Return the seeds of dropout's masks, [layers, streams, B · rows], int32."""
        layers = self.lm.config.layers
        return dropout.row_seeds(seeds, rows, streams * layers).view(layers, streams, -1)


def allow_shapes() -> None:
    """Let functions be compiled for `SHAPES` shapes of batches."""
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)


def fused_kernels_work(device: torch.device, execution: Execution) -> bool:
    """Return whether the fused kernels work: they require 16 bits and the Tensor Cores of compute capability 8.0."""
    if device.type != "cuda" or not execution.compile or execution.precision == "fp32":
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def check_determinism(execution: Execution, device: torch.device) -> None:
    """Check that a model that trains without the fused kernels isn't asked for equal bits on a GPU.

    Raises:
        ConfigError: it is.
    """
    if execution.deterministic and device.type == "cuda":
        raise ConfigError(
            message(
                "deterministic needs the fused kernels: LoRA on all linear layers without DoRA, compiled, on a GPU of "
                "compute capability 8.0 or newer"
            ),
            message("Leave out --deterministic"),
        )


class Graphs(Generic[Result]):
    """Calls a function of tensors, and from its third call with the same shapes on replays a CUDA graph of it.

    The thousands of kernels of a micro-batch are launched as one, which spares most of the launch time. A graph records
    the kernels of one call together with the addresses that they read and write: to replay it, new inputs are copied
    into the recorded tensors (the static inputs), and the result is copied out of the recorded output.

    The first call compiles and lets libraries choose algorithms, the second is captured. The function must launch the
    same kernels for the same shapes, must not synchronize with the GPU, and must update its state in place.

    Args:
        function: takes tensors on one GPU, or nothing; returns a tensor or None.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function: Callable[..., Result] = function
        self._seen: set[object] = set()
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        self._works = True

    def __call__(self, *inputs: Tensor) -> Result:
        key = tuple((one.shape, one.dtype) for one in inputs)
        if key not in self._graphs:
            if key not in self._seen or not self._works:  # the first call compiles and chooses algorithms
                self._seen.add(key)
                return self._function(*inputs)
            try:
                self._graphs[key] = self._capture(*inputs)
            except torch.OutOfMemoryError:
                self.release()
                raise
            except RuntimeError as error:
                raise_if_interrupted(error)
                self._works = False
                self.release()
                logger.warning("no CUDA graph (%s): training continues without, and slower", error)
                return self._function(*inputs)
        graph, static_inputs, output = self._graphs[key]
        if inputs:
            torch._foreach_copy_(static_inputs, list(inputs))
        graph.replay()
        return None if output is None else output.clone()

    def release(self) -> bool:
        """Free the graphs' memory, and return whether there were any."""
        held = bool(self._graphs)
        self._graphs.clear()
        torch.cuda.empty_cache()
        return held

    def _capture(self, *inputs: Tensor) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Result]:
        static_inputs = [one.clone() for one in inputs]
        torch.cuda.empty_cache()  # the graphs' pool can't use the blocks that earlier calls left in the cache
        graph = torch.cuda.CUDAGraph()
        first = next((graph for graph, *_ in self._graphs.values()), None)
        pool = None if first is None else first.pool()  # one for all: they never run at the same time
        # Other threads may save and load meanwhile: only this one must not synchronize with the GPU.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self._function(*static_inputs)
        return graph, static_inputs, output
