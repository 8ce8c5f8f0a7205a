from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from demo_model.training import LAST_RATE, Run, adamw, as_graph, set_learning_rate, update


class Toy:
    """A linear layer that is trained on random numbers."""

    def __init__(self, path: Path, steps: int = 6) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.optimizer = adamw([self.layer], 0.1, betas=(0.9, 0.99), weight_decay=0.1)
        self.run = Run(path, {"layer": self.layer, "optimizer": self.optimizer}, steps)

    def train(self, last: int) -> Tensor:
        step = as_graph(lambda: self._step(), torch.device("cpu"))
        for number in self.run.until(last):
            set_learning_rate(self.optimizer, 0.1, number, self.run.steps)
            step()
        return self.layer.weight.detach().clone()

    def _step(self) -> Tensor:
        loss = (self.layer(torch.randn(4, 3)) - 1).square().mean()
        update(self.optimizer, loss)
        return loss.detach()


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = Toy(tmp_path / "whole.pt").train(6)
    Toy(tmp_path / "parts.pt").train(3)
    torch.rand(5)  # other random numbers are drawn meanwhile
    resumed = Toy(tmp_path / "parts.pt")
    assert resumed.run.step == 3
    assert torch.equal(resumed.train(6), whole)


def test_a_checkpoint_of_another_number_of_steps_is_refused(tmp_path: Path) -> None:
    Toy(tmp_path / "run.pt").train(2)
    with pytest.raises(SystemExit, match="6 steps"):
        Toy(tmp_path / "run.pt", steps=8)


def test_the_learning_rate_warms_up_and_decays_to_its_last_share(tmp_path: Path) -> None:
    optimizer = Toy(tmp_path / "run.pt").optimizer
    rates = []
    for number in range(1001):
        set_learning_rate(optimizer, 1.0, number, 1000)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] < 0.01 < rates[150] < rates[198] > rates[600] > rates[999]
    assert rates[1000] == pytest.approx(LAST_RATE)
