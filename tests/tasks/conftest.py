"""Read artifacts, logs and subflows of runs back from the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import soundfile
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun

from tests.fixture_types import Shown


@pytest.fixture
def shown(prefect_server: None) -> Shown:
    """Return a function that reads a flow run's artifacts by key, and asserts that keys are unique."""

    def read(flow_run: UUID) -> dict[str, Artifact]:
        with get_client(sync_client=True) as client:
            of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run]))
            found = client.read_artifacts(artifact_filter=of_run)
        by_key = {str(entry.key): entry for entry in found}
        assert len(by_key) == len(found)
        return by_key

    return read


@pytest.fixture
def log_lines(prefect_server: None) -> Callable[[UUID], list[str]]:
    """Return a function that reads a flow run's log once its last line, the final state, has arrived."""

    def read(flow_run: UUID) -> list[str]:
        of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run]))
        deadline = time.monotonic() + 120
        with get_client(sync_client=True) as client:
            while True:
                lines = [entry.message for entry in client.read_logs(log_filter=of_run)]
                if any(line.startswith("Finished in state") for line in lines) or time.monotonic() > deadline:
                    return lines
                time.sleep(0.1)

    return read


@pytest.fixture
def subflows(prefect_server: None) -> Callable[[UUID], dict[str, FlowRun]]:
    """Return a function that reads a flow run's subflow runs, by the first word of their names."""

    def read(flow_run: UUID) -> dict[str, FlowRun]:
        with get_client(sync_client=True) as client:
            of_run = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run]))
            return {run.name.split()[0]: run for run in client.read_flow_runs(flow_run_filter=of_run)}

    return read


@pytest.fixture
def demo_wav() -> Callable[[Path], Path]:
    """Return a function that writes a wav of 0.1 s of silence to a folder."""

    def write(folder: Path) -> Path:
        soundfile.write(folder / "generated_000.wav", np.zeros(3200), 32_000)
        return folder / "generated_000.wav"

    return write
