"""Stretches of a piece that are made again, while the rest stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicgen_core.errors import ConfigError
from musicgen_core.generation.piece_prompts import described_prompt
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.redone import CROSSFADE
from musicgen_core.generation.render import render
from musicgen_core.generation.seam_settings import SeamSettings, Stretch, parse_stretch
from musicgen_core.model.weights import BaseModel
from tests.melody_model import make_melody_model
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, sidecar_of
from tests.stereo_model import make_stereo_model

REDO = SeamSettings(redo="0.4-0.8", seam_candidates=3)


@pytest.fixture
def piece(request_for: Any) -> str:
    (made,) = render(request_for("piece", prompts=PROMPTS[:1], duration=1.4, save_codes=True))
    return made.wav


def changed_samples(before: str, after: str) -> tuple[int, int]:
    """The first and the last sample that differ."""
    old, new = (soundfile.read(wav, dtype="int16")[0] for wav in (before, after))
    assert old.shape == new.shape
    (differ,) = np.nonzero((old != new).reshape(len(old), -1).any(axis=1))
    return differ.min(), differ.max()


def test_codes_and_samples_outside_the_stretch_stay_as_they_are(request_for: Any, piece: str) -> None:
    (made,) = render(request_for(prompts=PROMPTS[:1], continue_from=piece, seams=REDO, save_codes=True))
    before, after = codes_of(piece), codes_of(made.wav)
    (differ,) = np.nonzero((before != after).any(axis=0))
    assert (before.shape, 20, 39) == (after.shape, differ.min(), differ.max())
    first, last = changed_samples(piece, made.wav)
    assert 20 * 640 - CROSSFADE <= first < 21 * 640 and 39 * 640 <= last < 40 * 640 + CROSSFADE
    sidecar = sidecar_of(made.wav)
    redo = sidecar["redo"]
    assert (made.seconds, sidecar["continued_from"]) == (1.4, piece)
    assert (redo["begin"], redo["end"], redo["codes"], redo["candidates"]) == (0.4, 0.8, "saved", 3)
    assert redo["score"] == max(redo["scores"])
    page = (Path(made.wav).parent / "index.html").read_text(encoding="utf-8")
    assert "0.4-0.8 s of generated_000.wav made again" in page


@pytest.mark.parametrize("redo", ["0-0.4", "0.9-1.4"])
def test_the_beginning_and_the_end_of_a_piece_can_be_made_again(request_for: Any, piece: str, redo: str) -> None:
    seams = SeamSettings(redo=redo, seam_candidates=2)
    (made,) = render(request_for(continue_from=piece, prompts=PROMPTS[:1], seams=seams, save_codes=True))
    stretch = parse_stretch(redo)
    assert stretch
    same = np.ones(70, dtype=bool)
    same[stretch.begin : stretch.end] = False
    assert (codes_of(piece)[:, same] == codes_of(made.wav)[:, same]).all()
    first, last = changed_samples(piece, made.wav)
    assert first >= max(0, stretch.begin * 640 - CROSSFADE) and last < stretch.end * 640 + CROSSFADE
    assert (sidecar_of(made.wav)["redo"]["score"] is None) == (stretch.end == 70)  # nothing follows to judge by


def test_a_recording_without_codes_is_encoded_and_kept_outside_the_stretch(request_for: Any, tmp_path: Path) -> None:
    wav, times = str(tmp_path / "take.wav"), np.arange(44_100 + 77) / 44_100
    soundfile.write(wav, 0.5 * np.sin(2 * np.pi * 440 * times), 44_100, subtype="FLOAT")
    (tmp_path / "take.npy").write_bytes(b"not codes")
    (made,) = render(request_for(prompts=PROMPTS[:1], continue_from=wav, seams=REDO))
    kept, _ = soundfile.read(made.wav)
    at_32_khz = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(kept)) / 32_000)
    outside = np.r_[200 : 20 * 640 - CROSSFADE, 40 * 640 + CROSSFADE : len(kept) - 200]
    assert len(kept) == round(len(times) * 32_000 / 44_100) and np.abs(kept - at_32_khz)[outside].max() < 1e-3
    assert np.abs(kept - at_32_khz)[20 * 640 : 40 * 640].max() > 0.1
    assert sidecar_of(made.wav)["redo"]["codes"] == "encoded"


def test_a_new_stretch_is_as_loud_as_its_piece(request_for: Any, piece: str, tmp_path: Path) -> None:
    samples, rate = soundfile.read(piece)
    quiet = str(tmp_path / "quiet.wav")
    soundfile.write(quiet, samples / 10, rate)
    loud, soft = (
        soundfile.read(render(request_for(prompts=PROMPTS[:1], continue_from=wav, seams=REDO))[0].wav)[0]
        for wav in (piece, quiet)
    )
    middle = slice(21 * 640, 39 * 640)
    assert 5 < loud[middle].std() / soft[middle].std() < 20  # encoded again, the quiet one has other codes


def test_candidates_differ_from_the_piece_and_the_same_request_gives_the_same(request_for: Any, piece: str) -> None:
    given = {"prompts": PROMPTS[:1], "continue_from": piece, "seams": REDO, "variations": 2, "save_codes": True}
    first, again = (render(request_for(name, **given)) for name in ("one", "two"))
    codes = [[codes_of(made.wav).tobytes() for made in made_] for made_ in (first, again)]
    assert codes[0] == codes[1] and len({*codes[0], codes_of(piece).tobytes()}) == 3


@pytest.mark.parametrize(
    ("redo", "found"),
    [("1-1.5", "1-1.5 s can't be made again: .* lasts 1.4 s"), ("0-1.4", "0-1.4 s is all of .*: nothing would stay")],
)
def test_a_stretch_that_is_no_part_of_the_piece_is_refused(
    request_for: Any, piece: str, redo: str, found: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=found) as refused:
        render(request_for(continue_from=piece, seams=SeamSettings(redo=redo)))
    assert "--redo" in refused.value.next_step and not (tmp_path / "out").exists()


def test_a_stretch_needs_a_readable_recording_and_no_melody(request_for: Any, piece: str) -> None:
    for given, found in (
        ({}, "--redo needs the recording"),
        ({"continue_from": "gone.wav"}, "no part of gone.wav can be made again"),
        ({"continue_from": piece, "melody": piece}, "--redo can't follow a melody"),
    ):
        with pytest.raises(ConfigError, match=found):
            render(request_for(seams=REDO, **given))


def test_a_stretch_is_two_seconds_of_which_the_first_is_smaller(tmp_path: Path) -> None:
    assert parse_stretch("8-14") == Stretch(400, 700) and parse_stretch(" 0.5 – 1.25 ") == Stretch(25, 62)
    lines = [json.dumps({"prompt": "x", "redo": text}) for text in ("14-8", "8", "a-b", "-1-3", "8-8.001", "1-99999")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="two seconds, the first one smaller, such as 8-14") as refused:
        read_prompts(str(tmp_path / "prompts.jsonl"))
    assert "and 1 more line" in str(refused.value)


def test_a_piece_says_what_it_was_made_with(request_for: Any, adapter: Path, tmp_path: Path) -> None:
    given = Prompt(prompt="slow piano", tempo=90, negative_prompt="drums", seed=5, adapter=(f"{adapter}:0.5",))
    (made,) = render(request_for(prompts=[given]))
    found, _ = described_prompt(made.wav, with_adapters=True)
    expected = given.model_copy(update={"adapter": (f"{adapter / 'lora_weights' / 'best_lora.pt'}:0.5",)})
    assert found == expected
    sidecar = sidecar_of(made.wav)
    texts = ["slow piano, a, 90 bpm", "slow piano, b, 90 bpm"]
    sections = [{"start": start, "prompt": text} for start, text in zip((0.0, 2), texts, strict=True)]
    changed = {"sections": sections, "model": "demo@sha256:0"}
    Path(made.wav).with_suffix(".json").write_text(json.dumps({**sidecar, "adapter": None, **changed}))
    found, model = described_prompt(made.wav, with_adapters=True)
    assert (found.adapter, found.text, model) == (("base",), "slow piano, 90 bpm", "demo")
    assert [section.prompt for section in found.section_texts] == texts
    with pytest.raises(ConfigError, match=r"the prompt of .*gone\.wav can't be read") as refused:
        described_prompt(str(tmp_path / "gone.wav"), with_adapters=True)
    assert "--prompt" in refused.value.next_step


@pytest.mark.parametrize("make", [make_stereo_model, make_melody_model])
def test_stereo_and_melody_models_make_loops_and_stretches(
    request_for: Any, debug_model: BaseModel, tmp_path: Path, make: Any
) -> None:
    model = str(make(tmp_path / "model", debug_model).directory)
    given = {"model": model, "prompts": [Prompt(prompt="a", tempo=240)], "save_codes": True}
    (loop,) = render(request_for(seams=SeamSettings(loop=True, seam_candidates=2), duration=2, **given))
    seams = SeamSettings(redo="0.4-0.8", seam_candidates=2)
    (made,) = render(request_for(continue_from=loop.wav, seams=seams, **given))
    (differ,) = np.nonzero((codes_of(loop.wav) != codes_of(made.wav)).any(axis=0))
    first, last = changed_samples(loop.wav, made.wav)
    assert (loop.seconds, made.seconds, differ.min() >= 20, differ.max() < 40) == (2, 2, True, True)
    assert 20 * 640 - CROSSFADE <= first and last < 40 * 640 + CROSSFADE
    assert sidecar_of(made.wav)["redo"]["codes"] == "saved"
