"""The model card of an export: its content, and that its code examples run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.io import wavfile

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.data.shards import ShardReport
from musicgen_core.exporting.export import export
from musicgen_core.exporting.model_card import Data, Origin, RenderedSample, write_card
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.weights import BaseModel, find_model
from musicgen_core.run_layout import RunConfig
from tests.fixture_types import Save
from tests.hostile import LONG, TEXTS, is_inert_markdown, is_inert_terminal_text
from tests.musicgen_core.model.adapters import random_adapter
from tests.stereo_model import make_stereo_model

LARGE = "facebook/musicgen-large@sha256:0123456789abcdef"
PROMPTS = ["calm *piano*, | <b>soft</b>\nand [slow](x)", "drums", "strings", "a fourth"]


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def run_the_code_in(card: str) -> dict[str, Any]:
    """Run the code examples, and return their variables."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    variables: dict[str, Any] = {}
    exec(code, variables)
    return variables


def check_music(path: Path) -> None:
    rate, audio = wavfile.read(path)
    assert rate == 32_000 and audio.shape == (5 * 32_000,)


def test_the_code_for_peft_runs_and_gives_the_adapted_model(
    adapter: Adapter,
    saved: Save,
    hf: Any,
    hf_directory: Path,
    our_logits: Callable[..., torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(saved(adapter), tmp_path / "jazz", "peft")
    (tmp_path / "path" / "to" / "the" / "base").mkdir(parents=True)
    (tmp_path / "path" / "to" / "the" / "base" / "model").symlink_to(hf_directory / "debug")
    monkeypatch.chdir(tmp_path)
    model = run_the_code_in((tmp_path / "jazz" / "README.md").read_text())["model"]
    torch.testing.assert_close(hf.logits(model), our_logits(adapter), atol=1e-4, rtol=0)
    check_music(tmp_path / "music.wav")


def test_the_code_for_audiocraft_runs_without_the_hub(
    adapter: Adapter, saved: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_audiocraft()  # with the current stack it needs stand-ins
    export(saved(adapter), tmp_path / "jazz", "audiocraft")
    monkeypatch.chdir(tmp_path)
    model = run_the_code_in((tmp_path / "jazz" / "README.md").read_text())["model"]
    merged = torch.load(tmp_path / "jazz" / "state_dict.bin", weights_only=True)["best_state"]
    assert all(torch.equal(tensor, merged[name]) for name, tensor in model.lm.state_dict().items())
    check_music(tmp_path / "music.wav")


def test_the_code_for_hugging_face_runs_without_the_hub(
    adapter: Adapter,
    saved: Save,
    hf: Any,
    our_logits: Callable[..., torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export(saved(adapter), tmp_path / "jazz", "huggingface")
    monkeypatch.chdir(tmp_path)
    model = run_the_code_in((tmp_path / "jazz" / "README.md").read_text())["model"]
    torch.testing.assert_close(hf.logits(model), our_logits(adapter), atol=1e-4, rtol=0)
    check_music(tmp_path / "music.wav")


def test_the_code_for_a_stereo_model_writes_both_channels(
    debug_model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_model(make_stereo_model(tmp_path / "stereo", debug_model).name)
    adapter = storage.as_path(tmp_path / "some_lora.pt")
    save_adapter(random_adapter(model, AdapterConfig(4, 16, 0.0)), adapter)
    export(adapter, tmp_path / "jazz", "huggingface", model.name)
    monkeypatch.chdir(tmp_path)
    run_the_code_in((tmp_path / "jazz" / "README.md").read_text())
    rate, audio = wavfile.read(tmp_path / "music.wav")
    assert rate == 32_000 and audio.shape == (5 * 32_000, 2)


@pytest.mark.parametrize(
    ("kind", "relation", "library"),
    [
        ("peft", "adapter", "peft"),
        ("audiocraft", "finetune", "audiocraft"),
        ("huggingface", "finetune", "transformers"),
    ],
)
def test_the_hub_reads_base_model_licence_and_library(
    adapter: Adapter, saved: Save, debug_model: Any, tmp_path: Path, kind: Any, relation: str, library: str
) -> None:
    from huggingface_hub import ModelCard

    name = debug_model.identity.replace("debug@", "facebook/musicgen-large@")
    source = saved(dataclasses.replace(adapter, base_model=name))
    export(source, tmp_path / "out", kind, model=str(debug_model.directory))
    text = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(text) == {
        "base_model": "facebook/musicgen-large",
        "base_model_relation": relation,
        "library_name": library,
        "license": "cc-by-nc-4.0",
        "pipeline_tag": "text-to-audio",
        "tags": ["musicgen", "lora", "text-to-music", "music"],
    }
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "cc-by-nc-4.0"
    assert "CC-BY-NC 4.0" in text and "facebook/musicgen-large" in text.split("---\n")[2]


def test_the_demo_model_has_its_licence_and_no_hub_id(adapter: Adapter, saved: Save, tmp_path: Path) -> None:
    source = saved(dataclasses.replace(adapter, base_model="demo@sha256:0123456789abcdef"))
    export(source, tmp_path / "theremin", "peft")
    text = (tmp_path / "theremin" / "README.md").read_text()
    assert front_matter(text)["license"] == "cc0-1.0" and "base_model" not in front_matter(text)
    assert "# theremin: a LoRA adapter for the model demo" in text and "CC0 1.0" in text
    assert 'base = "path/to/the/base/model"' in text and "huggingface.co/demo" not in text


def test_a_base_model_that_is_not_known_has_no_licence_made_up(adapter: Adapter, saved: Save, tmp_path: Path) -> None:
    source = saved(dataclasses.replace(adapter, base_model="local@sha256:0123456789abcdef"))
    export(source, tmp_path / "out", "peft")
    text = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(text)["license"] == "other" and "base_model" not in front_matter(text)
    assert "CC-BY" not in text and "local@sha256:0123456789abcdef" in text


# A run directory


@pytest.fixture
def run_dir(adapter: Adapter, tmp_path: Path) -> Path:
    """Return a run directory: config, metrics, samples and its best adapter, of step 30 in epoch 2."""
    run, tokens = tmp_path / "run", tmp_path / "secret tokens"
    save_adapter(dataclasses.replace(adapter, base_model=LARGE), storage.as_path(run / "lora_weights/best_lora.pt"))
    reports = [ShardReport(f"a{i}.zip", 1, f"f{i}", "c", clips=1000 + i, audio_seconds=27_000.0) for i in range(2)]
    tokens.mkdir()
    for i, report in enumerate(reports):
        (tokens / f"a{i}.json").write_text(json.dumps(dataclasses.asdict(report)))
    config = {
        **{"lora_r": 4, "learning_rate": 2e-4, "num_epochs": 3, "gpus": 2, "cfg_dropout": None, "tokens": str(tokens)},
        **{"model_dir": "/secret/model", "shards": {f"a{i}": report.content for i, report in enumerate(reports)}},
    }
    (run / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": 15, "epoch": 1, "train/epoch_loss": 7.75, "val/loss": 7.0, "val/perplexity_codebook_0": 90.5},
        {"step": 20, "epoch": 2, "train/loss": 7.25},
        {"step": 30, "epoch": 2, "val/loss": 6.5, "val/perplexity": 665.0, "val/perplexity_codebook_0": 88.25},
        {"step": 45, "epoch": 3, "train/loss": 1.125, "val/loss": 9.5, "val/perplexity_codebook_0": 11.5},
    ]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"step": 4')
    (run / "samples").mkdir()
    (run / "samples/prompts.json").write_text(json.dumps({"prompts": PROMPTS, "duration": 10}))
    for epoch in range(4):
        for i in range(len(PROMPTS)):
            (run / f"samples/epoch_{epoch:03d}_{i:02d}.wav").write_bytes(f"{epoch} {i}".encode())
    return run


def card_of(run: Path, out: Path) -> str:
    export(run, out, "peft")
    return (out / "README.md").read_text()


def test_the_card_has_the_metrics_of_the_adapters_own_step(run_dir: Path, tmp_path: Path) -> None:
    card = card_of(run_dir, tmp_path / "out")
    for row in (
        "| validation loss, nats | 6.5 |",
        "| validation perplexity of codebook 0 | 88.25 |",
        "| validation perplexity | 665 |",
        "| training loss of the epoch, nats, at step 15 | 7.75 |",
    ):
        assert f"{row}\n" in card
    assert "9.5" not in card and "11.5" not in card and "1.125" not in card
    assert "7.25" not in card, "a single step's loss is noise"
    assert "Trained for 30 steps, until epoch 2" in card


def test_the_card_has_the_evaluation_only_of_these_weights(run_dir: Path, tmp_path: Path) -> None:
    weights = run_dir / "lora_weights/best_lora.pt"
    found = {
        "adapter": {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()},
        **{"clips": 1200, "loss": {"base_loss": 7.125, "adapter_loss": 6.625}},
    }
    (run_dir / "evaluation").mkdir()
    (run_dir / "evaluation/evaluation.json").write_text(json.dumps(found))
    card = card_of(run_dir, tmp_path / "out")
    assert "| evaluation: loss of the base model on 1,200 held-out clips, nats | 7.125 |\n" in card
    assert "| evaluation: loss with the adapter on the same, nats | 6.625 |\n" in card
    for unsure in ({"is_held_out": False}, {"validation_fraction": 0.9}):
        (run_dir / "evaluation/evaluation.json").write_text(json.dumps(found | unsure))
        assert "evaluation: loss" not in card_of(run_dir, tmp_path / str(*unsure))
    found["adapter"] = {"sha256": "of others"}
    (run_dir / "evaluation/evaluation.json").write_text(json.dumps(found))
    assert "evaluation: loss" not in card_of(run_dir, tmp_path / "again")


@pytest.mark.parametrize(("given", "is_told"), [("bf16", False), ("fp8", True)])
def test_the_base_precision_is_listed_only_if_known(run_dir: Path, tmp_path: Path, given: str, is_told: bool) -> None:
    """bf16 in the settings may have been fp32 on a CPU."""
    config = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**config, "base_precision": given}))
    assert ("base_precision" in card_of(run_dir, tmp_path / "out")) == is_told


def test_the_card_sums_up_the_data(run_dir: Path, tmp_path: Path) -> None:
    assert "2 archives, 2,001 clips, 15.0 hours of music" in card_of(run_dir, tmp_path / "out")


@pytest.mark.parametrize("change", ["gone", "tokenized anew"])
def test_changed_tokens_leave_only_the_number_of_archives(run_dir: Path, tmp_path: Path, change: str) -> None:
    marker = tmp_path / "secret tokens" / "a1.json"
    marker.unlink() if change == "gone" else marker.write_text(marker.read_text().replace('"f1"', '"other"'))
    card = card_of(run_dir, tmp_path / "out")
    assert "2 archives.\n" in card and "clips" not in card


def test_the_card_has_the_settings_but_no_machine_details(run_dir: Path, tmp_path: Path) -> None:
    card = card_of(run_dir, tmp_path / "out")
    for row in ("| `lora_r` | 4 |", "| `learning_rate` | 0.0002 |", "| `num_epochs` | 3 |"):
        assert f"{row}\n" in card
    assert "secret" not in card and "gpus" not in card and "None" not in card and str(tmp_path) not in card


def test_samples_of_adapter_and_base_model_are_exported(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "samples/epoch_000_01.wav").unlink()
    card = card_of(run_dir, tmp_path / "out")
    copied = {file.name: file.read_text() for file in (tmp_path / "out/samples").iterdir()}
    assert copied == {
        **{"adapter_00.wav": "2 0", "adapter_01.wav": "2 1", "adapter_02.wav": "2 2"},
        **{"base_00.wav": "0 0", "base_02.wav": "0 2"},
    }
    assert set(re.findall(r"\(samples/(.*?)\)", card)) == copied.keys()


def test_a_prompt_is_only_text_in_the_card(run_dir: Path, tmp_path: Path) -> None:
    card = card_of(run_dir, tmp_path / "out")
    assert r"calm \*piano\*, \| \<b\>soft\</b\> and \[slow\](x): [after epoch 2]" in card


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples/prompts.json", "config.json"])
def test_missing_parts_of_a_run_directory_are_left_out(run_dir: Path, tmp_path: Path, file: str) -> None:
    (run_dir / file).unlink()
    card = card_of(run_dir, tmp_path / "out")
    assert "| `lora_r` | 4 |" in card and "None" not in card
    assert ("| training loss of the step, nats | 6.5 |" in card) == (file != "samples/prompts.json")
    headings = re.findall("^## (.*)$", card, re.MULTILINE)
    left = {"metrics.jsonl": set(), "samples/prompts.json": {"Samples"}}.get(file, {"Samples", "Data"})
    everything = ["How to load it", "Samples", "Data", "Settings", "Metrics", "Licence"]
    assert headings == [heading for heading in everything if heading not in left]


def test_a_remote_run_directory_tells_as_much(run_dir: Path, bucket: Any, tmp_path: Path) -> None:
    storage.upload_tree(run_dir, bucket / "run")
    local = card_of(run_dir, tmp_path / "out")
    export(str(bucket / "run"), str(bucket / "out"), "peft")
    assert (bucket / "out/README.md").read_text() == local
    assert (bucket / "out/samples/adapter_00.wav").read_text() == "2 0"


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_of_strangers_is_live_in_the_card(adapter: Adapter, text: str, tmp_path: Path) -> None:
    strange = dataclasses.replace(adapter, base_model=f"{text}@sha256:{text}")
    sample = RenderedSample(text + LONG, storage.as_path(tmp_path), storage.as_path(tmp_path))
    origin = Origin(RunConfig({"schedule": text, "seed": text}), data=Data(2, 3, 180.0), samples=(sample,))
    for kind in ("peft", "audiocraft", "huggingface"):
        write_card(tmp_path, text, kind, strange, origin, text, {"00.wav": sample})
        card = (tmp_path / "README.md").read_text()
        assert set(front_matter(card)) <= {
            "base_model",
            "license",
            "license_name",
            "library_name",
            "pipeline_tag",
            "tags",
        }
        body = card.split("---\n", 2)[2]
        compile(re.findall(r"```python\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)[0], "card", "exec")
        prose = re.sub(r"```python\n.*?^```$", "", body, flags=re.DOTALL | re.MULTILINE)
        ours = re.sub(r"\]\((samples/\w+\.wav)\)|\]\(https://creativecommons\S+\)", "]", prose)
        assert is_inert_markdown(ours) and is_inert_terminal_text(card) and LONG not in card
        assert "3.0 minutes of music" in card
