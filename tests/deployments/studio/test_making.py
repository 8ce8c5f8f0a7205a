"""Music made in the studio: its files are those of `generate`, and it is heard while it is generated."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model.weighted_adapters import WeightedAdapter
from tests.studio_site import Site, open_studio


def sidecar(site: Site, stem: str) -> dict[str, Any]:
    found: dict[str, Any] = site.client.get(f"/files/{stem}.json").json()
    return found


def wav_of(seconds: float, rate: int = 32_000) -> bytes:
    buffer = io.BytesIO()
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * 220 * time), rate, format="WAV")
    return buffer.getvalue()


def test_a_form_becomes_the_files_of_generate(site: Site, runs: Path, tmp_path: Path) -> None:
    (adapter,) = site.client.get("/api/adapters").json()
    assert (adapter["name"], adapter["validation_loss"], adapter["strength"]) == ("jazz", 6.25, 0)
    control = {"negative_prompt": "drums", "tempo": 90, "key": "A minor"}
    job = site.wait(
        site.make(prompt="slow piano", seed=7, variations=2, top_k=20, strengths={adapter["id"]: 0.5}, **control)
    )
    assert job["state"] == "done" and len(job["pieces"]) == 2
    request = RenderRequest(
        out=str(tmp_path / "generated"),
        prompts=[Prompt(prompt="slow piano", **control)],
        model="debug",
        settings=SamplingSettings(duration=0.5, seed=7, top_k=20),
        adapters=(WeightedAdapter(str(runs / "jazz"), 0.5),),
        variations=2,
        device="cpu",
    )
    for piece, stem in zip(render(request), sorted(job["pieces"]), strict=True):
        assert Path(piece.wav).read_bytes() == site.client.get(f"/files/{stem}.wav").content
        own, expected = sidecar(site, stem), json.loads(Path(piece.wav).with_suffix(".json").read_text())
        assert {**own, "render_seconds": 0} == {**expected, "render_seconds": 0}
    assert (site.served.folder.path / "index.html").is_file()


def test_the_sound_is_there_before_the_piece_is_complete(site: Site) -> None:
    id = site.make(prompt="long", duration=20, seed=1)
    received, states = b"", []
    with site.client.stream("GET", f"/api/jobs/{id}/sound") as answer:
        assert (answer.headers["x-sample-rate"], answer.headers["x-channels"]) == ("32000", "1")
        for part in answer.iter_bytes():
            received += part
            states.append(site.job(id)["state"])
    assert states[0] == "making"
    (stem,) = site.wait(id)["pieces"]
    saved, _ = soundfile.read(io.BytesIO(site.client.get(f"/files/{stem}.wav").content))
    heard = np.frombuffer(received, np.int16) / 32768
    assert heard.shape == saved.shape
    assert np.corrcoef(heard, saved)[0, 1] > 0.9  # the saved file has a gain, and its limiter


def test_a_sample_continues_another_from_where_one_listens(site: Site) -> None:
    (stem,) = site.wait(site.make(prompt="first", seed=1, duration=1))["pieces"]
    job = site.wait(site.make(prompt="second", seed=2, source=stem, until=0.4, duration=0.6))
    made = sidecar(site, job["pieces"][0])
    assert made["duration"] == pytest.approx(1.0)
    kept, rate = soundfile.read(made["continued_from"])
    original, _ = soundfile.read(io.BytesIO(site.client.get(f"/files/{stem}.wav").content))
    assert np.array_equal(kept, original[: round(0.4 * rate)])
    again = site.client.get(f"/api/pieces/{job['pieces'][0]}/form").json()
    assert again["source_seconds"] == pytest.approx(0.4)
    assert site.wait(site.make(**again["values"]))["pieces"] == job["pieces"]  # the same sample: it replaces itself


def test_an_upload_is_continued(site: Site) -> None:
    kept = site.client.post("/api/uploads", content=wav_of(0.5)).json()
    assert kept["seconds"] == pytest.approx(0.5)
    job = site.wait(site.make(prompt="more", source=kept["source"], duration=0.5))
    assert sidecar(site, job["pieces"][0])["duration"] == pytest.approx(1.0)


def test_what_would_become_too_long_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.served.folder, "source", lambda *_: ("long.wav", 3599.0))
    answer = site.client.post("/api/jobs", json={"prompt": "more", "source": "generated_000", "duration": 10})
    assert answer.status_code == 422 and "duration: " in answer.json()["error"], answer.text


def test_a_random_seed_is_chosen_and_kept(site: Site) -> None:
    seeds = {sidecar(site, site.wait(site.make(prompt="any"))["pieces"][0])["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_the_history_is_the_folder_also_after_a_restart(site: Site, runs: Path) -> None:
    site.wait(site.make(prompt="kept", seed=3))
    listed = site.client.get("/api/pieces").json()
    assert listed[0]["prompt"] == "kept" and len({piece["stem"] for piece in listed}) == len(listed)
    with open_studio(site.served.folder.path, runs) as other:
        assert other.client.get("/api/pieces").json() == listed


@pytest.mark.parametrize(
    "number",
    [float("nan"), float("inf"), -float("inf"), pytest.param(10**400, id="huge"), "x", True, None, [1]],
)
def test_foreign_values_in_sidecars_are_left_out(site: Site, number: Any) -> None:
    foreign = dict.fromkeys(("seed", "duration", "variation", "fields"), number)
    foreign |= {"prompt": ["no text"], "sampling": {"guidance": number}, "loop": {"bars": 4, "tempo": number}}
    folder = site.served.folder.path
    for stem, adapter in (("generated_900", [7]), ("generated_901", {"path": "a\ud800.pt", "strength": number})):
        (folder / f"{stem}.json").write_text(json.dumps(foreign | {"adapter": adapter}))
        (folder / f"{stem}.wav").write_bytes(wav_of(0.1))
    other, piece = site.client.get("/api/pieces").json()[:2]
    assert (piece["stem"], piece["prompt"], piece["seed"], piece["seconds"]) == ("generated_900", "", None, 0)
    assert [(one["name"], one["strength"]) for one in other["adapters"]] == [("a\\ud800.pt", 1)]
    assert site.client.get("/api/comparisons").status_code == 200


def test_a_number_that_is_made_again_shows_its_new_prompt(site: Site) -> None:
    folder = site.served.folder.path
    for prompt in ("old", "new"):
        (folder / "generated_902.json").write_text(json.dumps({"prompt": prompt, "seed": 1, "sampling": {}}))
        (folder / "generated_902.wav").write_bytes(wav_of(0.1))
        assert site.client.get("/api/pieces").json()[0]["prompt"] == prompt
        (folder / "generated_902.json").unlink()
        assert site.client.get("/api/pieces").json()[0]["stem"] != "generated_902"
