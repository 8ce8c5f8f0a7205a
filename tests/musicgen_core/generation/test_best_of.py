"""The best of several candidates of a sample is kept, by measures of its sound."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.codec import Codec
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.errors import ConfigError
from musicgen_core.generation.control import ControlSettings
from musicgen_core.generation.measures import Reference, measure, reference_of, stated_key, stated_tempo
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.training_music import reference_for
from musicgen_core.model.adapters import Adapter, save_adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel
from tests.musicgen_core.generation.rendered_files import codes_of, names_in, sidecar_of

RATE = 32_000
MINOR_CADENCE = ((0, 3, 7), (5, 8, 12), (7, 10, 14), (0, 3, 7))


@pytest.fixture(scope="module")
def tagger() -> Musicnn:
    return Musicnn(torch.device("cpu"))


def cadence(root: float, bpm: float = 120) -> Tensor:
    """Return 16 s in a minor key [1, samples], with a click on each beat."""
    seconds = torch.arange(2 * RATE) / RATE

    def note(pitch: float) -> Tensor:
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        partials = [torch.sin(2 * math.pi * h * hertz * seconds) / h**1.5 for h in range(1, 7)]
        return torch.stack(partials).sum(0) * torch.exp(-seconds)

    bars = [
        torch.stack([note(48 + root + chord[0] % 12), *(note(60 + root + step) for step in chord)]).sum(0)
        for chord in MINOR_CADENCE
    ]
    sound = 0.05 * torch.cat([*bars, *bars])
    generator = torch.Generator().manual_seed(0)
    for beat in range(int(16 * bpm / 60)):
        start = round(beat * 60 / bpm * RATE)
        sound[start : start + 400] += 0.3 * torch.randn(400, generator=generator)
    return sound[None]


def codes(frames: int = 500, seed: int = 0) -> Tensor:
    return torch.randint(2048, (4, frames), generator=torch.Generator().manual_seed(seed))


def test_tempo_and_key_of_a_text_are_those_in_the_words_of_captions() -> None:
    text = Prompt(prompt="a ballad in C major", tempo=90, key="a minor", instruments=["piano"]).text
    assert (stated_tempo(text), stated_key(text)) == (90, "A minor")
    assert (stated_tempo("techno at 128.5bpm"), stated_key("in c# major")) == (128.5, "Db major")
    assert (stated_tempo("1000 bpm, 16 bits"), stated_key("a minor detail, major chords")) == (None, "A minor")
    assert (stated_tempo("jazz"), stated_key("jazz")) == (None, None)


@pytest.mark.parametrize(
    ("text", "tempo", "key"),
    [("120 bpm, A minor", 1, 1), ("60 bpm, C major", 1, 0.5), ("90 bpm, Bb minor", 0, 0), ("jazz", None, None)],
)
def test_the_prompts_tempo_and_key_are_measured(text: str, tempo: float | None, key: float | None) -> None:
    score, found = measure(text, codes(), cadence(root=9), "no music")
    if tempo is None:
        assert (found["tempo"], found["key"]) == ("the prompt states no tempo", "the prompt states no key")
    else:
        assert found["tempo"]["score"] == pytest.approx(tempo, abs=0.2) and found["key"]["score"] == key
        assert found["tempo"]["measured"] == pytest.approx(120, abs=2) and found["key"]["measured"] == "A minor"
    assert found["nearness"] == "no music"
    scores = [one["score"] for one in found.values() if isinstance(one, dict)]
    assert score == pytest.approx(sum(scores) / len(scores), abs=1e-4)


def test_silence_meets_no_tempo_and_no_key() -> None:
    _, found = measure("120 bpm, A minor", codes(), torch.zeros(1, 10 * RATE), "")
    assert found["tempo"] == {"wanted": 120, "measured": None, "score": 0}
    assert found["key"] == {"wanted": "A minor", "measured": None, "score": 0}


def test_repetition_and_clipping_lower_the_score() -> None:
    sound, given = cadence(root=9), codes()
    best, found = measure("jazz", given, sound, "")
    looped, repeated = measure("jazz", given[:, :50].repeat(1, 10), sound, "")
    loud, clipped = measure("jazz", given, 30 * sound, "")
    assert found["repetition"]["score"] == found["clipping"]["score"] == 1
    assert repeated["repetition"]["share"] > 0.8 and clipped["clipping"]["share"] > 0.01
    assert best > looped and best > loud


def test_what_sounds_like_the_training_music_is_nearer_to_it(tagger: Musicnn) -> None:
    noise = 0.1 * torch.randn(1, 16 * RATE, generator=torch.Generator().manual_seed(0))
    learned_from = [cadence(root, bpm)[0].numpy() for root, bpm in ((0, 90), (5, 120), (9, 100))]
    reference = reference_of(learned_from, tagger)
    near, far = (measure("jazz", codes(), sound, reference)[1]["nearness"] for sound in (cadence(7, 110), noise))
    assert near["distance"] < far["distance"] / 2 and near["score"] > far["score"]
    short = measure("jazz", codes(), cadence(7)[:, :RATE], reference)[1]["nearness"]
    assert short == "the sample is shorter than 3 s"


def test_the_music_of_a_training_run_is_that_of_its_tokens(
    debug_model: BaseModel, strong_adapter: Adapter, tagger: Musicnn, tmp_path: Path
) -> None:
    parquet, tokens = tmp_path / "archive.parquet", tmp_path / "tokens"
    with ShardWriter(parquet, codec_identity(debug_model)) as writer:
        for number in range(3):
            writer.add(Row(f"{number}.wav", None, 4.0, codes(200, number).numpy().astype(np.uint16)))
    publish_shard(parquet, ShardReport("archive.zip", 1, "f", "c", 3, 12.0), storage.as_path(tokens))
    adapter = storage.as_path(tmp_path / "run" / "lora_weights" / "best_lora.pt")
    save_adapter(strong_adapter, adapter)
    find = partial(
        reference_for, model=debug_model, codec=Codec(debug_model, torch.device("cpu")), tagger=lambda: tagger
    )
    assert find([]) == "the base model has no training music of its own"
    assert "isn't in a run directory" in str(find([adapter]))
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({"tokens": str(tmp_path / "gone")}))
    assert str(find([adapter])).startswith("the training music can't be read")
    config.write_text(json.dumps({"tokens": str(tokens)}))
    found = find([adapter])
    assert isinstance(found, Reference) and found.mean.shape == (400,) and (found.variance > 0).all()


def test_the_candidate_with_the_best_score_is_kept(request_for: Any, tmp_path: Path) -> None:
    shared = {"control": ControlSettings(best_of=3), "save_codes": True, "duration": 1.0}
    kept = render(request_for("all", keep_candidates=True, **shared))
    best = render(request_for("best", **shared))
    plain = render(request_for("plain", save_codes=True, duration=1.0))
    assert (len(kept), len(best), len(plain)) == (6, 2, 2)
    for number, piece in enumerate(best):
        candidates = [sidecar_of(one.wav)["best_of"] for one in kept[3 * number : 3 * number + 3]]
        found = sidecar_of(piece.wav)["best_of"]
        assert [one["candidate"] for one in candidates] == [0, 1, 2]
        assert {one["chosen"] for one in candidates} == {found["chosen"]} == {found["candidate"]}
        assert found["score"] == max(one["score"] for one in candidates) == max(found["scores"])
        assert found["scores"] == [one["score"] for one in candidates]
        assert found["measures"]["nearness"] == "the base model has no training music of its own"
        chosen = kept[3 * number + found["chosen"]]
        assert np.array_equal(codes_of(piece.wav), codes_of(chosen.wav))
        assert np.array_equal(codes_of(kept[3 * number].wav), codes_of(plain[number].wav))
    assert len({sidecar_of(one.wav)["stream"] for one in kept}) == 6
    page = (tmp_path / "all" / "index.html").read_text(encoding="utf-8")
    assert "candidate 3 of 3" in page and "chosen" in page
    assert "best of 3" in (tmp_path / "best" / "index.html").read_text(encoding="utf-8")
    again = render(request_for("all", keep_candidates=True, **shared))
    assert [one.wav for one in again] == [one.wav for one in kept]
    assert "best_of" not in sidecar_of(plain[0].wav)


def test_a_prompt_has_its_own_number_of_candidates(request_for: Any, tmp_path: Path) -> None:
    prompts = [Prompt(prompt="jazz", best_of=1), Prompt(prompt="rock")]
    request = request_for(prompts=prompts, control=ControlSettings(best_of=2), keep_candidates=True, variations=2)
    pieces = render(request)
    assert len(pieces) == request.sample_count == 6
    assert len([name for name in names_in(tmp_path / "out") if name.endswith(".wav")]) == 6
    counts = [sidecar_of(piece.wav).get("best_of", {}).get("candidates", 1) for piece in pieces]
    assert counts == [1, 1, 2, 2, 2, 2]


def test_candidates_to_keep_need_best_of(request_for: Any) -> None:
    with pytest.raises(ConfigError, match="--keep-candidates is given without candidates") as refused:
        render(request_for(keep_candidates=True))
    assert "--best-of" in refused.value.next_step
