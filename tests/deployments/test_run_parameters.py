from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.options import UsageError
from deployments.run_parameters import check


def test_a_parameter_that_there_is_not_is_named_with_the_one_that_may_be_meant() -> None:
    schema = {"properties": {"num_epochs": {"type": "integer"}, "seed": {"type": "integer"}}}
    deployment: Any = SimpleNamespace(name="train-lora", parameter_openapi_schema=schema)
    check({"num_epochs": 3}, deployment)
    with pytest.raises(UsageError) as refused:
        check({"num_epoch": 3}, deployment)
    assert "train-lora has no parameter 'num_epoch' (perhaps num_epochs); it has num_epochs, seed" in str(refused.value)
