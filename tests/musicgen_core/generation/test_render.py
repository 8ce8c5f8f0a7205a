"""Rendering: the files, the sidecar's content, the same music from the same seed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile

from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import Cancelled
from musicgen_core.generation.render import render
from musicgen_core.generation.request import Rendered, page_of
from musicgen_core.model.adapters import Adapter, save_adapter
from musicgen_core.model.weights import BaseModel
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, names_in, sidecar_of


def test_each_prompt_becomes_a_wav_and_its_description(request_for: Any, tmp_path: Path) -> None:
    pieces: list[Rendered] = []
    rendered = render(request_for(), on_piece=pieces.append)
    files = [f"generated_00{i}.{kind}" for i in (0, 1) for kind in ("json", "wav")]
    assert names_in(tmp_path / "out") == [*files, "index.html"]
    wavs = [str(tmp_path / "out" / f"generated_00{i}.wav") for i in (0, 1)]
    assert rendered == pieces == [Rendered(wavs[i], PROMPTS[i], i, 0, 0.6, False) for i in (0, 1)]
    assert page_of(rendered) == str(tmp_path / "out" / "index.html")


def test_the_music_is_32_khz_mono_at_minus_14_lufs(request_for: Any) -> None:
    (piece,) = render(request_for(prompts=PROMPTS[:1], duration=2))
    samples, rate = soundfile.read(piece.wav)
    assert (rate, samples.shape) == (32_000, (64_000,))
    assert abs(pyloudnorm.Meter(rate).integrated_loudness(samples) + 14) < 0.5
    assert np.abs(samples).max() < 1


def test_the_sidecar_holds_everything_to_reproduce_the_sample(
    request_for: Any, adapter: Path, debug_model: BaseModel
) -> None:
    request = request_for(adapter=str(adapter), settings={"seed": 7, "top_k": 100, "temperature": 0.9})
    _, piece = render(request)
    sidecar = sidecar_of(piece.wav)
    best = adapter / "lora_weights" / "best_lora.pt"
    assert (sidecar["prompt"], sidecar["seed"], sidecar["duration"]) == (PROMPTS[1], 7, 0.6)
    assert sidecar["model"].rpartition("@")[2] == debug_model.identity.rpartition("@")[2]
    assert sidecar["adapter"] == {
        "path": str(best),
        "sha256": hashlib.sha256(best.read_bytes()).hexdigest(),
        "epoch": 3,
        "global_step": 42,
        "strength": 1.0,
    }
    assert SamplingSettings(**sidecar["sampling"]) == request.settings.model_copy(update={"guidance": 3.0})
    assert [sidecar[name] for name in ("engine_batch_size", "weight_bits", "cache_bits")] == [1, 16, 16]
    assert sidecar["versions"].keys() == {"torch", "audiocraft", "transformers"}


def test_codes_are_kept_where_asked(request_for: Any, tmp_path: Path) -> None:
    (piece,) = render(request_for(prompts=PROMPTS[:1], save_codes=True))
    assert names_in(tmp_path / "out") == [*(f"generated_000.{kind}" for kind in ("json", "npy", "wav")), "index.html"]
    assert (codes_of(piece.wav).dtype, codes_of(piece.wav).shape) == (np.uint16, (4, 30))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(request_for: Any) -> None:
    first, again, other = (
        [Path(piece.wav).read_bytes() for piece in render(request_for(f"out {i}", settings={"seed": seed}))]
        for i, seed in enumerate((3, 3, 4))
    )
    assert first == again
    assert first[0] != other[0] and first[0] != first[1]


def test_a_prompts_music_does_not_depend_on_the_prompts_after_it(request_for: Any) -> None:
    alone = render(request_for("alone", prompts=PROMPTS[:1]))
    beside = render(request_for("beside"))
    assert Path(alone[0].wav).read_bytes() == Path(beside[0].wav).read_bytes()


def test_compare_renders_base_and_adapter_from_the_same_stream(request_for: Any, adapter: Path) -> None:
    pieces = render(request_for("both", adapter=str(adapter), compare=True, save_codes=True))
    assert [(piece.prompt, piece.with_adapter) for piece in pieces] == [
        (prompt, with_adapter) for prompt in PROMPTS for with_adapter in (False, True)
    ]
    sidecars = [sidecar_of(piece.wav) for piece in pieces]
    assert [sidecar["adapter"] is not None for sidecar in sidecars] == [False, True, False, True]
    assert sidecars[0]["stream"] == sidecars[1]["stream"] != sidecars[2]["stream"]

    base = render(request_for("base", save_codes=True))
    adapted = render(request_for("adapted", adapter=str(adapter), save_codes=True))
    for i in range(2):
        assert np.array_equal(codes_of(pieces[2 * i].wav), codes_of(base[i].wav))
        assert np.array_equal(codes_of(pieces[2 * i + 1].wav), codes_of(adapted[i].wav))
    assert not np.array_equal(codes_of(base[0].wav), codes_of(adapted[0].wav))


def test_a_second_copy_and_a_remote_place_get_every_file(request_for: Any, tmp_path: Path) -> None:
    out = f"memory://{tmp_path.name}/out"
    render(request_for(out=out, prompts=PROMPTS[:1], save_codes=True, copy_to=str(tmp_path / "copy")))
    expected = [*(f"generated_000.{kind}" for kind in ("json", "npy", "wav")), "index.html"]
    remote = storage.as_path(out)
    assert sorted(path.name for path in remote.iterdir()) == names_in(tmp_path / "copy") == expected
    assert all((remote / name).read_bytes() == (tmp_path / "copy" / name).read_bytes() for name in expected)


def test_cancelled_it_keeps_finished_samples(request_for: Any, tmp_path: Path) -> None:
    reported: list[tuple[int, int, str]] = []
    with pytest.raises(Cancelled):
        render(
            request_for(), lambda *one: reported.append(one), cancelled=lambda: len(reported) == 38
        )  # of 33 steps each
    assert [text for _, _, text in reported] == 33 * ["sample 1 of 2"] + 5 * ["sample 2 of 2"]
    frames = [done for done, _, _ in reported]
    assert frames == sorted(frames) and frames[32] == 30 and {total for _, total, _ in reported} == {60}
    assert names_in(tmp_path / "out") == ["generated_000.json", "generated_000.wav", "index.html"]


def test_flac_mp3_and_a_picture_come_beside_the_wav_where_asked(request_for: Any, tmp_path: Path) -> None:
    render(request_for(prompts=PROMPTS[:1], formats=("flac", "mp3"), spectrograms=True))
    kinds = ("flac", "json", "mp3", "png", "wav")
    assert names_in(tmp_path / "out") == [*(f"generated_000.{kind}" for kind in kinds), "index.html"]


def test_without_a_model_the_adapters_own_plays(request_for: Any, strong_adapter: Adapter, tmp_path: Path) -> None:
    saved = tmp_path / "best_lora.pt"
    named = strong_adapter.base_model.rpartition("@")[2]
    save_adapter(Adapter(**{**vars(strong_adapter), "base_model": f"debug@{named}"}), storage.as_path(saved))
    [piece] = render(request_for(prompts=["jazz"], adapter=str(saved), model=None))
    assert sidecar_of(piece.wav)["model"].startswith("debug@")
