"""Comparisons and votes of the studio: kept beside the music, about samples of its folder only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from upath import UPath

from musicgen_core.generation.votes import read_votes
from tests.studio_site import Site, open_studio

JAZZ = {"path": "/runs/jazz/lora_weights/best_lora.pt", "sha256": "ab" * 32, "strength": 0.5}


@pytest.fixture(scope="module")
def compared(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Run a studio on a folder with the base model's sample and an adapter's, from one seed."""
    folder = tmp_path_factory.mktemp("compared")
    for number, (adapter, seed) in enumerate(((None, 7), (JAZZ, 7), (JAZZ, 8))):
        sidecar = {
            "prompt": "calm piano",
            "seed": seed,
            "variation": 0,
            "duration": 1.0,
            "adapter": adapter,
            "sampling": {},
        }
        (folder / f"generated_{number:03d}.json").write_text(json.dumps(sidecar))
        soundfile.write(folder / f"generated_{number:03d}.wav", np.zeros(32_000), 32_000)
    with open_studio(folder, runs) as site:
        yield site


def vote_of(vote: str = "a", b: str = "generated_001.wav", **more: Any) -> dict[str, Any]:
    return {"a": {"file": "generated_000.wav"}, "b": {"file": b, "adapter": [JAZZ]}, "vote": vote, **more}


def test_samples_that_differ_in_their_adapters_are_offered_for_comparison(compared: Site) -> None:
    (found,) = compared.client.get("/api/comparisons").json()
    assert found["prompt"] == "calm piano" and found["seed"] == 7
    assert [piece["url"] for piece in found["pieces"]] == ["files/generated_000.wav", "files/generated_001.wav"]
    assert all(compared.client.get(f"/{piece['url']}").status_code == 200 for piece in found["pieces"])


def test_a_vote_is_kept_beside_the_music_with_what_the_samples_were(compared: Site) -> None:
    invented = {"a": {"file": "generated_000.wav", "adapter": [{"path": "invented"}]}, "time": "1970"}
    before = len(read_votes(UPath(compared.served.folder.path / "votes.jsonl"))[0])
    answer = compared.client.post("/api/votes", json=vote_of("b", prompt="invented", seed=9, variation=3) | invented)
    assert answer.status_code == 201
    (tally,) = answer.json()
    assert "base model : jazz/best_lora.pt 0.5" in tally["title"] and "no preference yet" in tally["sentence"]
    votes, unreadable = read_votes(UPath(compared.served.folder.path / "votes.jsonl"))
    assert len(votes) == before + 1 and unreadable == 0
    assert (votes[-1].prompt, votes[-1].seed, votes[-1].variation) == ("calm piano", 7, 0)
    assert votes[-1].a.adapter == () and votes[-1].b.name == "jazz/best_lora.pt 0.5" and votes[-1].time > "2026"
    assert compared.client.get("/api/votes").json() == [tally]


@pytest.mark.parametrize(
    ("vote", "problem"),
    [
        (vote_of(b="../secret.wav"), "there is no sample ../secret.wav"),
        (vote_of(b="generated_777.wav"), "there is no sample generated_777.wav"),
        (vote_of(b="generated_002.wav"), "generated_000.wav and generated_002.wav differ in more than their adapters"),
        (vote_of("c"), "vote: "),
        (vote_of(prompt="x" * 5000), "prompt: "),
        ({}, "the values of the vote have"),
    ],
    ids=["outside", "missing", "other", "choice", "long", "empty"],
)
def test_other_votes_are_refused_and_nothing_is_written(compared: Site, vote: dict[str, Any], problem: str) -> None:
    path = compared.served.folder.path / "votes.jsonl"
    before = path.read_bytes() if path.exists() else b""
    answer = compared.client.post("/api/votes", json=vote)
    assert answer.status_code == 422 and problem in answer.json()["error"]
    assert (path.read_bytes() if path.exists() else b"") == before


def test_pages_of_other_sites_cannot_vote(compared: Site) -> None:
    headers = {"origin": "http://evil.example"}
    assert compared.client.post("/api/votes", json=vote_of(), headers=headers).status_code == 403
