"""Judge by the language model itself how well known frames follow others: their log-likelihood, teacher-forced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_core.model.decoder import Condition, MusicgenLM, teacher_forcing


@torch.inference_mode()
def mean_log_likelihood(lm: MusicgenLM, condition: Condition, before: Tensor, following: Tensor) -> float:
    """Return the mean log-likelihood of the codes of frames under the model, after the frames before them, in nats.

    The codes that the delay pattern cuts off at the end are left out, as they are of training's loss.

    Args:
        lm: the model.
        condition: of one row.
        before: [K, frames], with `following` at most as many as the model was trained on.
        following: [K, frames], more than the largest delay.
    """
    shape = lm.config.codes
    codes = torch.cat([before, following], dim=1)[None].to(lm.enc_to_dec_proj.weight.device)
    frames = torch.tensor([codes.shape[-1]], device=codes.device)
    inputs, targets, valid = teacher_forcing(codes, frames, shape)
    first = torch.tensor(shape.delays, device=codes.device)[:, None] + before.shape[-1]
    counted = valid & (torch.arange(codes.shape[-1], device=codes.device) >= first)
    logits = lm(inputs, condition)[counted]  # [codes, cardinality]
    return -F.cross_entropy(logits.float(), targets[counted]).item()
