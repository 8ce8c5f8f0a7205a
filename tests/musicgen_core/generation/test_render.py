from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyloudnorm
import pytest
import soundfile
import torch

from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import AdapterError, Cancelled, ConfigError
from musicgen_core.generation.render import Rendered, RenderRequest, plot_spectrogram, read_prompts, render
from musicgen_core.model.lora import Adapter, LoraSettings, adapter_state, add_lora, save_adapter
from musicgen_core.model.weights import BaseModel, load_lm

PROMPTS = ("slow piano", "a fast breakbeat, 174 bpm")


@pytest.fixture(scope="module")
def adapter(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose best adapter changes the music."""
    settings = LoraSettings(4, 16)
    generator = torch.Generator().manual_seed(0)
    state = adapter_state(add_lora(load_lm(debug_model), settings))
    lora = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    run_dir = tmp_path_factory.mktemp("run")
    best = Adapter(lora, settings.plain(), 3, 42, 6.5, debug_model.identity)
    save_adapter(best, storage.as_path(run_dir / "lora_weights" / "best_lora.pt"))
    return run_dir


@pytest.fixture
def request_for(debug_model: BaseModel, tmp_path: Path) -> Any:
    def make(name: str = "out", **given: Any) -> RenderRequest:
        settings = SamplingSettings(duration=given.pop("duration", 0.6), **given.pop("settings", {}))
        values = {"out": str(tmp_path / name), "prompts": PROMPTS, "model": str(debug_model.directory), **given}
        return RenderRequest(**{"device": "cpu", "settings": settings, **values})

    return make


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def sidecar_of(wav: str) -> dict[str, Any]:
    return json.loads(Path(wav).with_suffix(".json").read_text(encoding="utf-8"))


def codes_of(wav: str) -> np.ndarray:
    return np.load(Path(wav).with_suffix(".npy"))


def test_each_prompt_becomes_a_wav_and_its_description(request_for: Any, tmp_path: Path) -> None:
    pieces: list[Rendered] = []
    rendered = render(request_for(), on_piece=pieces.append)
    assert names_in(tmp_path / "out") == [f"generated_00{i}.{kind}" for i in (0, 1) for kind in ("json", "wav")]
    assert (
        rendered
        == pieces
        == [
            Rendered(str(tmp_path / "out" / f"generated_00{i}.wav"), prompt, 0.6, False)
            for i, prompt in enumerate(PROMPTS)
        ]
    )


def test_the_music_is_32_khz_mono_at_minus_14_lufs(request_for: Any) -> None:
    (piece,) = render(request_for(prompts=PROMPTS[:1], duration=2))
    samples, rate = soundfile.read(piece.wav)
    assert (rate, samples.shape) == (32_000, (64_000,))
    assert abs(pyloudnorm.Meter(rate).integrated_loudness(samples) + 14) < 0.5
    assert np.abs(samples).max() < 1


def test_the_sidecar_tells_how_to_make_the_piece_again(request_for: Any, adapter: Path, debug_model: BaseModel) -> None:
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
    assert sidecar["engine_batch_size"] == 1
    assert sidecar["versions"].keys() == {"torch", "audiocraft", "transformers"}


def test_codes_are_kept_where_asked(request_for: Any, tmp_path: Path) -> None:
    (piece,) = render(request_for(prompts=PROMPTS[:1], save_codes=True))
    assert names_in(tmp_path / "out") == ["generated_000.json", "generated_000.npy", "generated_000.wav"]
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


def test_compare_renders_the_base_and_then_the_adapter_from_the_same_stream(request_for: Any, adapter: Path) -> None:
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
    expected = ["generated_000.json", "generated_000.npy", "generated_000.wav"]
    remote = storage.as_path(out)
    assert sorted(path.name for path in remote.iterdir()) == names_in(tmp_path / "copy") == expected
    assert all((remote / name).read_bytes() == (tmp_path / "copy" / name).read_bytes() for name in expected)


def test_told_to_stop_it_keeps_the_pieces_that_are_finished(request_for: Any, tmp_path: Path) -> None:
    steps: list[tuple[int, int, int]] = []
    with pytest.raises(Cancelled):
        render(request_for(), lambda *step: steps.append(step), cancelled=lambda: (1, 5, 33) in steps)
    assert steps == [(0, step, 33) for step in range(1, 34)] + [(1, step, 33) for step in range(1, 6)]
    assert names_in(tmp_path / "out") == ["generated_000.json", "generated_000.wav"]


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


def test_prompts_come_from_a_file_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("slow piano\n\n  Blasmusik für Anfänger  \n", encoding="utf-8")
    assert read_prompts(str(path)) == ["slow piano", "Blasmusik für Anfänger"]


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"], ids=["missing", "empty", "blank", "binary"])
def test_a_file_without_prompts_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)):
        read_prompts(str(path))


def test_a_spectrogram_is_drawn(request_for: Any, tmp_path: Path) -> None:
    (piece,) = render(dataclasses.replace(request_for(), prompts=PROMPTS[:1]))
    plot_spectrogram(piece.wav, tmp_path / "spectrogram.png", "slow piano")
    assert (tmp_path / "spectrogram.png").read_bytes().startswith(b"\x89PNG")
