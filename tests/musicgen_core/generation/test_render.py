from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch

from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import AdapterError, Cancelled, ConfigError, DeviceError, MusicgenError
from musicgen_core.generation import render as rendering
from musicgen_core.generation.plan import SHARE_FOR_CACHES, cache_bytes
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import Rendered, page_of
from musicgen_core.model.lora import Adapter, save_adapter
from musicgen_core.model.weights import BaseModel, load_lm

PROMPTS = ("slow piano", "a fast breakbeat, 174 bpm")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def sidecar_of(wav: str) -> dict[str, Any]:
    return json.loads(Path(wav).with_suffix(".json").read_text(encoding="utf-8"))


def codes_of(wav: str) -> np.ndarray:
    return np.load(Path(wav).with_suffix(".npy"))


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
    }
    assert SamplingSettings(**sidecar["sampling"]) == request.settings.model_copy(update={"guidance": 3.0})
    assert [sidecar[name] for name in ("engine_batch_size", "weight_bits", "cache_bits")] == [1, 16, 16]
    assert sidecar["versions"].keys() == {"torch", "audiocraft", "transformers"}


@pytest.mark.parametrize("what", ["weight", "cache"])
def test_unsupported_8_bits_are_refused_before_anything_is_written(request_for: Any, tmp_path: Path, what: str) -> None:
    with pytest.raises(DeviceError, match=f"8-bit {what}s"):
        render(request_for(**{f"{what}_bits": 8}))
    assert not (tmp_path / "out").exists()


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
    told: list[tuple[int, int, str]] = []
    with pytest.raises(Cancelled):
        render(request_for(), lambda *one: told.append(one), cancelled=lambda: len(told) == 38)  # of 33 steps each
    assert [text for _, _, text in told] == 33 * ["piece 1 of 2"] + 5 * ["piece 2 of 2"]
    frames = [done for done, _, _ in told]
    assert frames == sorted(frames) and frames[32] == 30 and {total for _, total, _ in told} == {60}
    assert names_in(tmp_path / "out") == ["generated_000.json", "generated_000.wav", "index.html"]


# Many pieces


def test_each_prompt_may_have_its_own_duration_and_seed(request_for: Any) -> None:
    prompts = [Prompt(prompt=PROMPTS[0], duration=0.4, seed=5), Prompt(prompt=PROMPTS[0]), Prompt(prompt=PROMPTS[0])]
    pieces = render(request_for(prompts=prompts))
    sidecars = [sidecar_of(piece.wav) for piece in pieces]
    assert [(one["duration"], one["seed"]) for one in sidecars] == [(0.4, 5), (0.6, 0), (0.6, 0)]
    assert [one["sampling"]["duration"] for one in sidecars] == [0.4, 0.6, 0.6]
    assert len({one["stream"] for one in sidecars}) == 3
    alone = render(request_for("alone", prompts=PROMPTS[:1], duration=0.4, settings={"seed": 5}))
    assert Path(alone[0].wav).read_bytes() == Path(pieces[0].wav).read_bytes()


def test_variations_differ_and_the_first_is_the_default_sample(request_for: Any) -> None:
    pieces = render(request_for(variations=3))
    assert [(piece.prompt, sidecar_of(piece.wav)["variation"]) for piece in pieces] == [
        (prompt, variation) for prompt in PROMPTS for variation in range(3)
    ]
    assert len({Path(piece.wav).read_bytes() for piece in pieces}) == 6
    usual = render(request_for("usual"))
    assert [Path(piece.wav).read_bytes() for piece in usual] == [Path(pieces[i].wav).read_bytes() for i in (0, 3)]


def test_a_padded_batch_gives_the_same_codes(request_for: Any) -> None:
    alone = render(request_for("alone", save_codes=True))
    batched = render(request_for("batched", save_codes=True, batch_size=4))
    for one, other in zip(alone, batched, strict=True):
        assert np.array_equal(codes_of(one.wav), codes_of(other.wav))
    assert [sidecar_of(piece.wav)["engine_batch_size"] for piece in batched] == [4, 4]


def test_a_wav_of_any_sample_rate_is_continued_and_recorded(request_for: Any, tmp_path: Path) -> None:
    wav = tmp_path / "given.wav"
    soundfile.write(wav, 0.5 * np.sin(np.arange(22_050) / 10), 44_100)  # 0.5 s
    (piece,) = render(request_for(prompts=PROMPTS[:1], continue_from=str(wav), save_codes=True, duration=0.8))
    (again,) = render(request_for("again", prompts=PROMPTS[:1], save_codes=True, duration=0.8))
    assert (piece.seconds, sidecar_of(piece.wav)["continued_from"]) == (0.8, str(wav))
    assert sidecar_of(again.wav)["continued_from"] is None
    assert not np.array_equal(codes_of(piece.wav), codes_of(again.wav))
    samples, _ = soundfile.read(piece.wav)
    assert soundfile.info(piece.wav).frames == 25_600 and np.isfinite(samples).all()


def test_what_cannot_be_continued_is_named(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "long.wav", 0.1 * np.ones(32_000), 32_000)
    for name, found in (("gone.wav", "can't be continued"), ("text.wav", "not decodable"), ("long.wav", "lasts 1 s")):
        with pytest.raises(ConfigError, match=found) as refused:
            render(request_for(continue_from=str(tmp_path / name)))
        assert name in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_flac_mp3_and_a_picture_come_beside_the_wav_where_asked(request_for: Any, tmp_path: Path) -> None:
    render(request_for(prompts=PROMPTS[:1], formats=("flac", "mp3"), spectrograms=True))
    kinds = ("flac", "json", "mp3", "png", "wav")
    assert names_in(tmp_path / "out") == [*(f"generated_000.{kind}" for kind in kinds), "index.html"]


def test_the_batch_size_depends_on_gpu_memory(
    request_for: Any, monkeypatch: pytest.MonkeyPatch, debug_model: BaseModel
) -> None:
    """The arithmetic for a GPU, though the steps run here."""
    config = load_lm(debug_model).config
    sizes: list[int] = []
    own, own_size = rendering.Engine.generate, rendering._Rendering._size_for

    def generate(self: Any, prompts: Any, *given: Any, **named: Any) -> Any:
        sizes.append(len(prompts))
        return own(self, prompts, *given, **named)

    def size_on_gpu(self: Any, *given: Any) -> int:
        here, self._device = self._device, torch.device("cuda")
        try:
            return own_size(self, *given)
        finally:
            self._device = here

    nine_pieces = int(9.5 * cache_bytes(config, 5) / SHARE_FOR_CACHES)
    monkeypatch.setattr(rendering.Engine, "generate", generate)
    monkeypatch.setattr(rendering._Rendering, "_size_for", size_on_gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (nine_pieces - 1000, nine_pieces))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2000)
    pieces = render(request_for(variations=6, duration=0.1))
    assert sizes == [8, 8] and len(pieces) == 12


def test_out_of_memory_all_samples_are_rendered_in_smaller_batches(
    request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"number {number}" for number in range(10)]
    one_by_one = render(request_for("one by one", prompts=prompts, save_codes=True))
    own, most = rendering.Engine.generate, 8

    def generate(engine: Any, prompts: Any, **others: Any) -> Any:
        if len(prompts) > most:
            raise torch.OutOfMemoryError("as a GPU would")
        return own(engine, prompts, **others)

    monkeypatch.setattr(rendering.Engine, "generate", generate)
    made = render(request_for(prompts=prompts, save_codes=True, batch_size=32))
    assert [piece.prompt for piece in made] == prompts
    assert {sidecar_of(piece.wav)["engine_batch_size"] for piece in made} == {8}
    for piece, alone in zip(made, one_by_one, strict=True):
        assert np.array_equal(codes_of(piece.wav), codes_of(alone.wav))
    most = 0
    with pytest.raises(DeviceError, match="one piece at a time doesn't fit"):
        render(request_for(batch_size=8))


def test_the_same_prompt_twice_can_be_made_again_from_its_sidecar(request_for: Any) -> None:
    pieces = render(request_for(prompts=[PROMPTS[0], PROMPTS[1], PROMPTS[0]]))
    last = sidecar_of(pieces[2].wav)
    assert (last["prompt"], last["variation"]) == (PROMPTS[0], 1)
    again = render(request_for("again", prompts=PROMPTS[:1], variations=2))
    assert Path(again[1].wav).read_bytes() == Path(pieces[2].wav).read_bytes()


def test_a_recording_is_named_with_its_content_and_may_be_long(request_for: Any, tmp_path: Path) -> None:
    wav = tmp_path / "minutes.wav"
    soundfile.write(wav, 0.3 * np.sin(np.arange(70 * 32_000) / 20), 32_000)
    prompts = [Prompt(prompt=PROMPTS[0], duration=70.2, continue_from=str(wav))]
    (piece,) = render(request_for(prompts=prompts, settings={"overlap": 1.0}))
    sidecar = sidecar_of(piece.wav)
    assert sidecar["continued_from_sha256"] == hashlib.sha256(wav.read_bytes()).hexdigest()
    assert soundfile.info(piece.wav).frames == round(70.2 * 32_000)


# What is refused


@pytest.mark.parametrize(
    ("given", "found", "next_step"),
    [({"prompts": ()}, "no prompts", "--prompt"), ({"compare": True}, "--compare needs an adapter", "--adapter")],
)
def test_a_request_that_makes_no_sense_is_refused(
    request_for: Any, given: dict[str, Any], found: str, next_step: str
) -> None:
    with pytest.raises(ConfigError, match=found) as refused:
        render(request_for(**given))
    assert next_step in refused.value.next_step


def test_an_adapter_of_another_model_is_refused(request_for: Any, adapter: Path, tmp_path: Path) -> None:
    values = torch.load(adapter / "lora_weights" / "best_lora.pt", weights_only=True)
    other = Adapter(**{**values, "base_model": "facebook/musicgen-small@sha256:0000000000000000"})
    save_adapter(other, storage.as_path(tmp_path / "other_lora.pt"))
    with pytest.raises(AdapterError, match="was trained on facebook/musicgen-small"):
        render(request_for(adapter=str(tmp_path / "other_lora.pt")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["adapter", "continue_from"])
def test_inputs_are_checked_before_a_model_is_looked_for(request_for: Any, tmp_path: Path, given: str) -> None:
    gone = str(tmp_path / "gone_lora.pt")
    with pytest.raises(MusicgenError, match="gone_lora"):
        render(request_for(model=str(tmp_path / "no-model"), **{given: gone}))


def test_a_pipe_is_not_waited_for_as_a_recording(request_for: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(ConfigError, match="it is not a file"):
        render(request_for(continue_from=str(tmp_path / "pipe.wav")))


def test_without_a_model_the_adapters_own_plays(request_for: Any, strong_adapter: Adapter, tmp_path: Path) -> None:
    saved = tmp_path / "best_lora.pt"
    named = strong_adapter.base_model.rpartition("@")[2]
    save_adapter(Adapter(**{**vars(strong_adapter), "base_model": f"debug@{named}"}), storage.as_path(saved))
    [piece] = render(request_for(prompts=["jazz"], adapter=str(saved), model=None))
    assert sidecar_of(piece.wav)["model"].startswith("debug@")
