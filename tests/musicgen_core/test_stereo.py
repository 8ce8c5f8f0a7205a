"""A stereo model, whose codebooks alternate between the channels, beside audiocraft and Hugging Face."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from omegaconf import OmegaConf

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.codes import MONO, SAMPLE_RATE, STEREO
from musicgen_core.config import SamplingSettings, TrainSettings
from musicgen_core.data.audio import DecodedClip
from musicgen_core.data.dataset import load_clips
from musicgen_core.data.shard_codec import shard_shape
from musicgen_core.data.shards import read_rows
from musicgen_core.encoding import Encoded, encode_clips
from musicgen_core.errors import TokensError
from musicgen_core.exporting.export import export
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model.adapters import AdapterConfig, load_adapter, save_adapter
from musicgen_core.model.audiocraft_format import read_checkpoint
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.decoder import delay
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.tokenizing import Tokenizer
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import Pack
from tests.musicgen_core.model.adapters import random_adapter
from tests.stereo_model import make_stereo_model


@pytest.fixture(scope="module")
def model(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return find_model(make_stereo_model(tmp_path_factory.mktemp("models") / "stereo", debug_model).name)


@pytest.fixture(scope="module")
def stereo_codec(model: BaseModel) -> Codec:
    return Codec(model)


def sound(seconds: float, channels: int = 2, rate: int = SAMPLE_RATE) -> Any:
    """Noise [samples, channels], whose left channel is louder."""
    rng = np.random.default_rng(round(1000 * seconds) + channels)
    samples = 0.1 * rng.standard_normal((round(seconds * rate), channels))
    samples[:, 0] *= 3
    return samples.astype(np.float32)


def wav_of(samples: Any, rate: int = SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@torch.inference_mode()
def test_codes_and_audio_are_audiocrafts(debug_model: BaseModel, stereo_codec: Codec) -> None:
    checkpoint = torch.load(debug_model.codec_path, weights_only=True)
    encodec = import_audiocraft("audiocraft.models.builders").get_compression_model(
        OmegaConf.create(checkpoint["xp.cfg"])
    )
    encodec.load_state_dict(checkpoint["best_state"])
    theirs = import_audiocraft("audiocraft.models.encodec").InterleaveStereoCompressionModel(encodec.eval())
    wav = torch.from_numpy(np.stack([sound(1.0).T, sound(1.0).T[::-1].copy()]))
    codes, _ = theirs.encode(wav)
    assert codes.shape == (2, 8, 50)
    assert torch.equal(stereo_codec.encode(wav), codes)
    torch.testing.assert_close(stereo_codec.decode(codes), theirs.decode(codes), atol=1e-6, rtol=0)


def test_clips_of_many_lengths_get_the_codes_of_each_channel_alone(codec: Codec, stereo_codec: Codec) -> None:
    clips = [DecodedClip(np.ascontiguousarray(sound(seconds).T), SAMPLE_RATE) for seconds in (0.5, 1.3, 0.52, 1.3)]
    found = dict(encode_clips(stereo_codec, enumerate(clips)))
    for number, clip in enumerate(clips):
        encoded = found[number]
        assert isinstance(encoded, Encoded)
        for channel in range(2):
            [(_, alone)] = encode_clips(codec, [(None, DecodedClip(clip.samples[channel], SAMPLE_RATE))])
            assert isinstance(alone, Encoded)
            assert np.array_equal(encoded.codes[channel::2], alone.codes)


@torch.inference_mode()
def test_greedy_codes_are_audiocrafts(model: BaseModel, tmp_path: Path) -> None:
    text = TextEncoder(model.text_encoder)
    text.t5.double()
    engine = Engine(load_lm(model, dtype=torch.float64), text, 3.0)
    (tmp_path / "t5-small").symlink_to(Path(model.text_encoder))
    with contextlib.chdir(tmp_path):
        theirs = import_audiocraft("audiocraft.models.loaders").load_lm_model(str(model.lm_path)).double().eval()
    theirs.condition_provider.conditioners["description"].t5.double()
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes
    conditions = [attributes(text={"description": "slow piano"})]
    expected = theirs.generate(conditions=conditions, max_gen_len=20, use_sampling=False, cfg_coef=3.0, check=True)
    [found] = engine.generate(["slow piano"], SamplingSettings(duration=0.4, greedy=True), [0])
    assert found.shape == (8, 20) and torch.equal(found, expected[0])


@torch.inference_mode()
def test_logits_are_hugging_faces(model: BaseModel, text_encoder: TextEncoder) -> None:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    lm = load_lm(model)
    config = MusicgenDecoderConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=256, num_codebooks=8, audio_channels=2
    )
    theirs = MusicgenForCausalLM(config).eval()
    state = {name: tensor for name, tensor in lm.state_dict().items() if not name.startswith("enc_to_dec_proj")}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and all("embed_positions" in name for name in missing)
    codes = torch.randint(2048, (1, 8, 9), generator=torch.Generator().manual_seed(0))
    sequence, text = delay(codes, STEREO), text_encoder.encode(["slow piano"])
    states, _ = lm.project_text(text)
    expected = theirs(sequence.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=text.mask.long())
    torch.testing.assert_close(lm(sequence, text).flatten(0, 1), expected.logits, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tokens(model: BaseModel, stereo_codec: Codec, pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of stereo, mono and six-channel clips."""
    members = [
        *((f"{number}.wav", wav_of(sound(0.6 + 0.1 * number))) for number in range(4)),
        ("mono.wav", wav_of(sound(0.8, channels=1))),
        ("surround.wav", wav_of(sound(0.8, channels=6))),
        ("44100.wav", wav_of(sound(0.7, rate=44_100), 44_100)),
    ]
    folder = tmp_path_factory.mktemp("archives")
    archive = pack(folder / "a.zip", members)
    report = Tokenizer(stereo_codec, storage.as_path(folder / "tokens")).tokenize(storage.as_path(archive))
    assert (report.clips, report.rejected) == (7, [])
    return folder / "tokens"


def test_channels_are_kept_and_others_doubled_or_mixed_down(tokens: Path, codec: Codec, stereo_codec: Codec) -> None:
    parquet = tokens / "a.parquet"
    assert shard_shape(pq.read_schema(parquet)) == STEREO
    rows = {row.clip: row.codes for row in read_rows(parquet)}
    assert all(codes.shape[0] == 8 for codes in rows.values())
    assert not np.array_equal(rows["0.wav"][::2], rows["0.wav"][1::2])
    for name, mixed in (("mono.wav", sound(0.8, 1)[:, 0]), ("surround.wav", sound(0.8, 6).mean(axis=1))):
        assert np.array_equal(rows[name][::2], rows[name][1::2])
        alone = codec.encode(torch.from_numpy(mixed)[None, None])[0].numpy()
        assert (rows[name][::2] == alone).mean() > 0.99  # the mean is rounded otherwise


def test_tokens_of_another_shape_are_refused_and_both_are_named(tokens: Path, debug_model: BaseModel) -> None:
    with pytest.raises(TokensError, match=r"is stereo \(8 codebooks\), and this run's model mono \(4 codebooks\)"):
        load_clips(storage.as_path(tokens), codec_identity(debug_model))


def generated(model: BaseModel, out: Path, **given: Any) -> Sequence[Any]:
    request = RenderRequest(
        out=str(out),
        prompts=[Prompt(prompt="slow piano", duration=given.pop("duration", 0.6))],
        model=model.name,
        settings=SamplingSettings(),
        device="cpu",
        save_codes=True,
        formats=("flac", "mp3"),
        **given,
    )
    return render(request)


def test_an_adapter_is_trained_and_its_music_is_stereo_and_can_be_continued(
    tokens: Path, model: BaseModel, tmp_path: Path
) -> None:
    settings = TrainSettings(batch_size=2, gradient_accumulation_steps=1, num_epochs=1, validation_fraction=0.3)
    run = tmp_path / "run"
    result = train(
        TrainRequest(tokens=str(tokens), run_dir=str(run), model=model.name, settings=settings, device="cpu")
    )
    assert result.best_loss is not None and np.isfinite(result.best_loss)
    rows = (run / "metrics.jsonl").read_text()
    assert "val/perplexity_codebook_7" in rows and (run / "perplexity.png").exists()
    [first] = generated(model, tmp_path / "music", adapters=[WeightedAdapter(str(run))])
    for ending in ("wav", "flac", "mp3"):
        samples, rate = soundfile.read(Path(first.wav).with_suffix(f".{ending}"), always_2d=True)
        assert (samples.shape[1], rate) == (2, SAMPLE_RATE)
    samples, _ = soundfile.read(first.wav)
    assert samples.shape == (19_200, 2) and np.abs(samples[:, 0] - samples[:, 1]).max() > 0.01
    assert Path(first.wav).with_suffix(".png").exists()
    [longer] = generated(model, tmp_path / "more", continue_from=first.wav, duration=0.9)
    codes = [np.load(Path(each.wav).with_suffix(".npy")) for each in (first, longer)]
    assert codes[0].shape == (8, 30) and codes[1].shape == (8, 45)
    merged = read_checkpoint(run / "full_models" / "best_model.pt")
    assert merged["best_state"]["emb.7.weight"].shape == (2049, 64)


def test_a_model_is_stereo_by_its_settings_and_mono_tokens_are_of_another_shape(
    model: BaseModel, debug_model: BaseModel
) -> None:
    assert (model.codes, debug_model.codes) == (STEREO, MONO)
    assert codec_identity(model) == f"{codec_identity(debug_model)}-stereo"


@torch.inference_mode()
def test_exports_are_stereo_models_of_hugging_face_and_audiocraft(model: BaseModel, tmp_path: Path) -> None:
    from transformers import AutoProcessor, MusicgenForConditionalGeneration

    adapter = storage.as_path(tmp_path / "some_lora.pt")
    save_adapter(random_adapter(model, AdapterConfig(4, 16, 0.0)), adapter)
    for kind in ("huggingface", "audiocraft", "peft"):
        export(adapter, tmp_path / kind, kind, model.name)
    lm = load_merged(model, load_adapter(adapter), "cpu", torch.float32)
    codes = torch.randint(2048, (1, 8, 9), generator=torch.Generator().manual_seed(0))
    sequence, text = delay(codes, STEREO), TextEncoder(model.text_encoder).encode(["slow piano"])
    expected = lm(sequence, text)
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "huggingface").eval()
    assert theirs.config.decoder.audio_channels == 2
    heard = AutoProcessor.from_pretrained(tmp_path / "huggingface")(
        text=["slow piano"], audio=[sound(0.1).T], sampling_rate=SAMPLE_RATE, return_tensors="pt"
    )
    assert heard["input_values"].shape == (1, 2, 3200)
    states, _ = lm.project_text(text)
    found = theirs.decoder(
        sequence.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=text.mask.long()
    )
    torch.testing.assert_close(found.logits, expected.flatten(0, 1), atol=1e-4, rtol=0)
    for directory in ("huggingface", "audiocraft"):
        again = find_model(str(tmp_path / directory))
        assert again.codes == STEREO and codec_identity(again).endswith("-stereo")
        torch.testing.assert_close(load_lm(again)(sequence, text), expected, atol=1e-4, rtol=0)
    assert (tmp_path / "peft" / "adapter_model.safetensors").exists()
