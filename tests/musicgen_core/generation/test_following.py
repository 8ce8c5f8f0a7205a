"""Music that follows the melody of a recording."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from musicgen_core import storage
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.errors import ConfigError
from musicgen_core.generation.melody import check_melodies
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.model.adapters import AdapterConfig, save_adapter
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel, takes_melody
from tests.melody_model import make_melody_model
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, sidecar_of
from tests.musicgen_core.melodies import music
from tests.musicgen_core.model.adapters import random_adapter


@pytest.fixture(scope="module")
def model(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return make_melody_model(tmp_path_factory.mktemp("models") / "melody", debug_model)


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two recordings, of 3 s each."""
    files = [tmp_path_factory.mktemp("tunes") / name for name in ("first.flac", "second.wav")]
    for second, file in zip((0, 20), files, strict=True):
        soundfile.write(file, music()[second * SAMPLE_RATE :][: 3 * SAMPLE_RATE].numpy(), SAMPLE_RATE)
    return list(map(str, files))


def test_samples_follow_their_melody_with_adapters_and_continuations(
    request_for: Any, model: BaseModel, tunes: list[str], tmp_path: Path
) -> None:
    adapter = storage.as_path(tmp_path / "some_lora.pt")
    save_adapter(random_adapter(model, AdapterConfig(4, 16, 0.0)), adapter)
    prompts = [Prompt(prompt=PROMPTS[0]), Prompt(prompt=PROMPTS[0], melody=tunes[1])]
    shared = {"model": model.name, "save_codes": True, "continue_from": tunes[0], "duration": 3.2, "variations": 2}
    followed = render(
        request_for(prompts=prompts, melody=tunes[0], adapters=[WeightedAdapter(str(adapter))], compare=True, **shared)
    )
    assert [sidecar_of(piece.wav)["melody"] for piece in followed] == 4 * tunes[:1] + 4 * tunes[1:]
    sidecar = sidecar_of(followed[0].wav)
    assert sidecar["melody_sha256"] == hashlib.sha256(Path(tunes[0]).read_bytes()).hexdigest()
    assert sidecar["continued_from"] == tunes[0]
    free = render(request_for("free", prompts=PROMPTS[:1], **shared))
    assert [sidecar_of(piece.wav)[key] for piece in free for key in ("melody", "melody_sha256")] == 4 * [None]
    distinct = {codes_of(piece.wav).tobytes() for piece in (*followed, *free)}
    assert len(distinct) == len(followed) + len(free)
    assert all(np.array_equal(codes_of(one.wav)[:, :150], codes_of(free[0].wav)[:, :150]) for one in followed)


def test_a_model_that_takes_no_melody_is_refused_before_anything_is_read(request_for: Any) -> None:
    with pytest.raises(ConfigError, match="takes no melody") as refused:
        render(request_for(melody="gone.wav"))
    assert "facebook/musicgen-melody" in str(refused.value) and "debug" in str(refused.value)
    with pytest.raises(ConfigError, match="without a melody"):
        render(request_for(separate_melody=True))


def test_whether_a_model_takes_a_melody_is_known_before_it_is_downloaded(model: BaseModel) -> None:
    known = {name: takes_melody(f"facebook/musicgen-{name}") for name in ("large", "stereo-small", "stereo-melody")}
    assert known == {"large": False, "stereo-small": False, "stereo-melody": True}
    assert (takes_melody("demo"), takes_melody(model.name), takes_melody("someone/tuned")) == (False, True, None)


def test_what_is_no_recording_is_refused_for_any_model(tmp_path: Path) -> None:
    for model in ("facebook/musicgen-melody", "someone/tuned", None):
        with pytest.raises(ConfigError, match=r"gone\.wav can't be used as a melody"):
            check_melodies([None, "", str(tmp_path / "gone.wav")], model)
