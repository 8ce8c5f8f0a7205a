"""`export --format audiocraft` against stock audiocraft."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from tests.fixture_types import Save

PROMPT, FRAMES = "slow piano", 40


@contextlib.contextmanager
def loaded(directory: Path, beside: Path) -> Iterator[Any]:
    """Return audiocraft's MusicGen of an exported directory; `beside` is the working directory with its T5."""
    beside.mkdir()
    (beside / "t5-small").symlink_to(directory / "text_encoder")
    with contextlib.chdir(beside):
        yield import_audiocraft("audiocraft.models").MusicGen.get_pretrained(str(directory), device="cpu")


@torch.inference_mode()
def logits_of(model: Any, sequence: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits [4, 12, 2048] and their mask, [4, 12]."""
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes
    codes = torch.stack([sequence[0, k, k + 1 : k + 13] for k in range(4)])[None]  # the delay undone
    output = model.lm.compute_predictions(codes, [attributes(text={"description": PROMPT})])
    return output.logits[0], output.mask[0]


def codes_of(model: Any) -> Tensor:
    """Return the greedy codes, in fp64."""
    model.lm.double().condition_provider.conditioners["description"].t5.double()
    model.set_generation_params(use_sampling=False, duration=FRAMES / 50)
    return model.generate([PROMPT], return_tokens=True)[1][0]


def test_stock_audiocraft_gives_our_logits_and_codes(
    any_adapter: Adapter,
    saved: Save,
    sequence: Tensor,
    our_logits: Callable[..., Tensor],
    our_codes: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    export(saved(any_adapter), tmp_path / "out", "audiocraft")
    with loaded(tmp_path / "out", tmp_path / "beside") as model:
        found, valid = logits_of(model, sequence)
        ours = our_logits(any_adapter)
        expected = torch.stack([ours[k, k : k + 12] for k in range(4)])
        difference = ((found[valid] - expected[valid]).abs().max() / ours.abs().max()).item()
        print(f"largest difference: {difference:.1e} of the largest logit")  # what bench/RESULTS.md tells; -rP shows it
        assert difference < 1e-5
        codes = codes_of(model)
    assert torch.equal(codes, our_codes(any_adapter)) and not torch.equal(codes, our_codes(None))


def test_the_directory_is_a_model_here_too(
    adapter: Adapter,
    debug_model: BaseModel,
    saved: Save,
    sequence: Tensor,
    our_logits: Any,
    text_encoder: Any,
    tmp_path: Path,
) -> None:
    exported = export(saved(adapter), tmp_path / "out", "audiocraft")
    model = find_model(str(tmp_path / "out"))
    with torch.inference_mode():
        found = load_lm(model)(sequence, text_encoder.encode([PROMPT]))[0]
    torch.testing.assert_close(found, our_logits(adapter), atol=1e-5, rtol=0)
    assert model.text_encoder == str(tmp_path / "out" / "text_encoder")
    music = torch.rand(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Codec(model).encode(music), Codec(debug_model).encode(music))
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in exported.files}
    assert exported.files == sizes and {"state_dict.bin", "README.md", "text_encoder/config.json"} < sizes.keys()
