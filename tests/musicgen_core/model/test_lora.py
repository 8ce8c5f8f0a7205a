from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.errors import AdapterError, ConfigError
from musicgen_core.model.decoder import DecoderConfig, MusicgenLM, TextCondition
from musicgen_core.model.lora import (
    Adapter,
    AdapterConfig,
    adapter_state,
    add_lora,
    find_adapter,
    load_adapter,
    load_merged,
    merged_checkpoint,
    save_adapter,
    set_adapter_state,
)
from musicgen_core.model.pattern import delay
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.files.full_models import write_full_model

SETTINGS = AdapterConfig(r=4, alpha=16, dropout=0.1)
SOME = ("q_proj", "encoder_attn.v_proj", "layers.0.fc1")
VARIANTS = {
    "LoRA": SETTINGS,
    "rsLoRA": dataclasses.replace(SETTINGS, rslora=True),
    "DoRA": dataclasses.replace(SETTINGS, dora=True),
    "some layers": dataclasses.replace(SETTINGS, targets=SOME),
    "all of it": dataclasses.replace(SETTINGS, targets=SOME, rslora=True, dora=True),
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
TEN_LINEARS = [f"{attention}.{p}" for attention in ("self_attn", "encoder_attn") for p in PROJECTIONS] + ["fc1", "fc2"]


def random_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter that changes something: a fresh one's lora_B is zero, and its magnitudes are the base's."""
    generator = torch.Generator().manual_seed(1)
    noise = {n: 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in state.items()}
    return {name: t * (1 + noise[name]) if "magnitude" in name else noise[name] for name, t in state.items()}


def random_adapter(model: BaseModel, settings: AdapterConfig) -> Adapter:
    state = random_state(adapter_state(add_lora(load_lm(model), settings)))
    lora = {name: tensor.float() for name, tensor in state.items()}
    return Adapter(lora, settings.plain(), epoch=2, global_step=30, loss=6.5, base_model=model.identity)


@pytest.fixture(scope="module")
def adapter(debug_model: BaseModel) -> Adapter:
    return random_adapter(debug_model, SETTINGS)


@pytest.fixture(scope="module", params=VARIANTS)
def any_adapter(debug_model: BaseModel, request: pytest.FixtureRequest) -> Adapter:
    return random_adapter(debug_model, VARIANTS[request.param])


@pytest.fixture(scope="module")
def sequence() -> Tensor:
    return delay(torch.randint(2048, (2, 4, 10), generator=torch.Generator().manual_seed(0)), special=2048)


@pytest.fixture(scope="module")
def text(text_encoder: TextEncoder) -> TextCondition:
    return text_encoder.encode(["slow piano", None])


def test_the_ten_linears_of_each_block_and_nothing_else_are_adapted(debug_model: BaseModel) -> None:
    lm = load_lm(debug_model)
    expected = {
        f"base_model.model.model.decoder.layers.{layer}.{linear}.lora_{side}.weight"
        for layer in range(lm.config.layers)
        for linear in TEN_LINEARS
        for side in "AB"
    }
    assert adapter_state(add_lora(lm, SETTINGS)).keys() == expected


def test_targets_choose_layers_by_the_ends_of_their_names(debug_model: BaseModel) -> None:
    lm = load_lm(debug_model)
    chosen = {
        f"{i}.{one}" for i in (0, 1) for one in ("self_attn.q_proj", "encoder_attn.q_proj", "encoder_attn.v_proj")
    }
    expected = {
        f"base_model.model.model.decoder.layers.{linear}.lora_{side}.weight"
        for linear in chosen | {"0.fc1"}
        for side in "AB"
    }
    assert adapter_state(add_lora(lm, VARIANTS["some layers"])).keys() == expected


@pytest.mark.parametrize("wrong", ["q_prj", "proj", "self_attn", "lm_heads.0", "enc_to_dec_proj", "layers.2.fc1", ""])
def test_a_target_that_matches_no_layer_is_refused_with_the_layers(debug_model: BaseModel, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"lora_targets {wrong}: no linear") as refused:
        add_lora(load_lm(debug_model), AdapterConfig(4, 16, targets=("v_proj", wrong)))
    assert all(name in refused.value.next_step for name in TEN_LINEARS)


def test_an_adapter_on_no_layers_is_refused(debug_model: BaseModel) -> None:
    with pytest.raises(ConfigError, match="lora_targets is empty"):
        add_lora(load_lm(debug_model), AdapterConfig(4, 16, targets=()))


def test_rslora_divides_by_the_root_of_the_rank(debug_model: BaseModel) -> None:
    layers = [add_lora(load_lm(debug_model), VARIANTS[name]).base_model.model.model for name in ("LoRA", "rsLoRA")]
    assert [layer.decoder.layers[1].fc2.scaling["default"] for layer in layers] == [4, 8]


def test_only_the_adapter_learns(debug_model: BaseModel, sequence: Tensor, text: TextCondition) -> None:
    model = add_lora(load_lm(debug_model), SETTINGS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for _ in range(2):  # lora_A gets no gradient before lora_B has moved
        optimizer.zero_grad()
        model(sequence, text).square().mean().backward()
        optimizer.step()
    with_gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert with_gradients == changed == adapters


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_fresh_adapter_changes_nothing(
    debug_model: BaseModel, sequence: Tensor, text: TextCondition, variant: str
) -> None:
    lm = load_lm(debug_model)
    expected = lm(sequence, text)
    assert torch.equal(add_lora(lm, VARIANTS[variant]).eval()(sequence, text), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fresh_dora_changes_no_weight_of_half_precision(debug_model: BaseModel, dtype: torch.dtype) -> None:
    merged = add_lora(load_lm(debug_model, dtype=dtype), VARIANTS["DoRA"]).merge_and_unload().state_dict()
    base = load_lm(debug_model, dtype=dtype).state_dict()
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_a_fresh_adapter_depends_on_its_seed_alone(debug_model: BaseModel) -> None:
    states = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(disturbance)
        states.append(adapter_state(add_lora(load_lm(debug_model), SETTINGS, seed)))
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.inference_mode()
def test_merged_equals_unmerged(
    debug_model: BaseModel,
    any_adapter: Adapter,
    sequence: Tensor,
    text: TextCondition,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    base = load_lm(debug_model, dtype=dtype)
    untouched = base(sequence, text)
    model = add_lora(base, AdapterConfig.from_plain(any_adapter.config))
    set_adapter_state(model, any_adapter.lora, "made here")
    unmerged = model.eval()(sequence, text)
    merged = load_merged(debug_model, any_adapter, "cpu", dtype)(sequence, text)
    assert (unmerged - untouched).abs().max() > 0.1
    torch.testing.assert_close(merged, unmerged, atol=tolerance * unmerged.abs().max().item(), rtol=0)


# Files


def test_an_adapter_comes_back_as_it_was_saved(adapter: Adapter, tmp_path: Path) -> None:
    path = storage.as_path(tmp_path / "best_lora.pt")
    save_adapter(adapter, path)
    loaded = load_adapter(path)
    assert loaded.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(loaded.lora[name], adapter.lora[name]) for name in adapter.lora)
    assert dataclasses.replace(loaded, lora={}) == dataclasses.replace(adapter, lora={})


def test_an_adapter_file_is_plain_values_under_the_contracts_names(adapter: Adapter, tmp_path: Path) -> None:
    save_adapter(adapter, storage.as_path(tmp_path / "a.pt"))
    values = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(values) == ["lora", "config", "epoch", "global_step", "loss", "base_model"]
    assert values["config"] == {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_come_back_from_a_file(variant: str) -> None:
    assert AdapterConfig.from_plain(json.loads(json.dumps(VARIANTS[variant].plain()))) == VARIANTS[variant]


def test_an_adapter_of_before_rslora_and_dora_has_neither() -> None:
    plain = SETTINGS.plain()
    del plain["use_rslora"], plain["use_dora"]
    assert AdapterConfig.from_plain(plain) == SETTINGS


def test_peft_itself_takes_the_saved_adapter(
    debug_model: BaseModel, any_adapter: Adapter, sequence: Tensor, text: TextCondition
) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(**{name: value for name, value in any_adapter.config.items() if name != "peft_type"})
    model: Any = get_peft_model(load_lm(debug_model), config)
    result = set_peft_model_state_dict(model, dict(any_adapter.lora))
    assert not result.unexpected_keys
    with torch.inference_mode():
        expected = load_merged(debug_model, any_adapter, "cpu", torch.float32)(sequence, text)
        torch.testing.assert_close(model.eval()(sequence, text), expected, atol=1e-4, rtol=0)


def test_an_adapter_of_another_rank_is_refused_with_the_difference(debug_model: BaseModel, adapter: Adapter) -> None:
    model = add_lora(load_lm(debug_model), AdapterConfig(8, 16))
    with pytest.raises(AdapterError) as refused:
        set_adapter_state(model, adapter.lora, "old_lora.pt")
    assert "old_lora.pt" in refused.value.found and "40 tensors differ" in refused.value.found
    assert "has [4, 64], the model needs [8, 64]" in refused.value.found


def test_an_adapter_of_a_model_of_fewer_layers_is_refused(adapter: Adapter) -> None:
    deeper = MusicgenLM(DecoderConfig(dim=64, layers=3, heads=4, ffn_dim=256, text_dim=512))
    with pytest.raises(AdapterError, match=r"20 tensors differ.*layers\.2\..*the adapter has none"):
        set_adapter_state(add_lora(deeper, SETTINGS), adapter.lora, "given")


def test_an_adapter_of_other_weights_is_refused_by_both_names(debug_model: BaseModel, adapter: Adapter) -> None:
    other = dataclasses.replace(adapter, base_model="facebook/musicgen-small@sha256:0000000000000000")
    with pytest.raises(AdapterError) as refused:
        other.check_base(debug_model, "x_lora.pt")
    assert "facebook/musicgen-small@" in refused.value.found and debug_model.identity in refused.value.found
    assert refused.value.next_step == "Give --model facebook/musicgen-small"


def test_the_same_weights_under_another_name_are_the_same_model(debug_model: BaseModel, adapter: Adapter) -> None:
    elsewhere = BaseModel(str(debug_model.directory), debug_model.directory)
    assert elsewhere.identity != debug_model.identity
    adapter.check_base(elsewhere, "given")


@pytest.mark.parametrize("other", [AdapterConfig(4, 8), AdapterConfig(8, 16)])
def test_an_adapter_of_another_scale_is_refused_with_both(adapter: Adapter, other: AdapterConfig) -> None:
    adapter.check_scale(AdapterConfig(4, 16, dropout=0.5), "given")
    with pytest.raises(AdapterError, match=f"lora_r 4 and lora_alpha 16.*say {other.r} and {other.alpha}") as refused:
        adapter.check_scale(other, "given")
    assert refused.value.next_step == "Give --lora-r 4 --lora-alpha 16"


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "LoRA"])
def test_an_adapter_of_another_shape_is_refused_with_the_options(adapter: Adapter, variant: str) -> None:
    with pytest.raises(AdapterError):
        adapter.check_scale(VARIANTS[variant], "given")
    other = dataclasses.replace(adapter, config=VARIANTS[variant].plain())
    with pytest.raises(AdapterError) as refused:
        other.check_scale(SETTINGS, "given")
    assert (
        refused.value.next_step
        == "Give --lora-r 4 --lora-alpha 16"
        + {
            "rsLoRA": " --lora-rslora",
            "DoRA": " --lora-dora",
            "some layers": "".join(f" --lora-targets {one}" for one in sorted(SOME)),
            "all of it": "".join(f" --lora-targets {one}" for one in sorted(SOME)) + " --lora-rslora --lora-dora",
        }[variant]
    )


def test_an_adapter_without_dora_is_continued_without(adapter: Adapter) -> None:
    with pytest.raises(AdapterError, match=r"lora_dora False.*say 4 and 16 and True") as refused:
        adapter.check_scale(VARIANTS["DoRA"], "given")
    assert refused.value.next_step == "Give --lora-r 4 --lora-alpha 16, without --lora-dora"


def test_a_run_directory_stands_for_its_best(adapter: Adapter, tmp_path: Path) -> None:
    best = tmp_path / "lora_weights" / "best_lora.pt"
    save_adapter(adapter, storage.as_path(best))
    assert find_adapter(tmp_path) == find_adapter(best) == storage.as_path(best)


@pytest.mark.parametrize("given", ["run", "some_lora.pt"])
def test_a_missing_adapter_is_named(tmp_path: Path, given: str) -> None:
    with pytest.raises(AdapterError, match=str(tmp_path / given)) as missing:
        find_adapter(tmp_path / given)
    assert "run directory" in missing.value.next_step


@pytest.mark.parametrize("damage", ["truncated", "empty", "a web page", "another file of tensors"])
def test_a_damaged_adapter_is_named(adapter: Adapter, tmp_path: Path, damage: str) -> None:
    path = storage.as_path(tmp_path / "best_lora.pt")
    save_adapter(adapter, path)
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
        case "empty":
            path.write_bytes(b"")
        case "a web page":
            path.write_text("<html>Not found</html>")
        case "another file of tensors":
            torch.save({"weights": torch.zeros(1)}, tmp_path / "best_lora.pt")
    with pytest.raises(AdapterError, match=str(path)):
        load_adapter(path)


# Full models


@pytest.fixture(scope="module")
def fp16_model(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The debug model with its language model in half precision, as the real ones are published."""
    directory = Path(shutil.copytree(debug_model.directory, tmp_path_factory.mktemp("model") / "half"))
    checkpoint = torch.load(directory / "state_dict.bin", weights_only=True)
    checkpoint["best_state"] = {name: tensor.half() for name, tensor in checkpoint["best_state"].items()}
    torch.save(checkpoint, directory / "state_dict.bin")
    return BaseModel("half", directory)


def test_stock_audiocraft_loads_a_full_model_with_our_logits(
    debug_model: BaseModel, any_adapter: Adapter, t5_directory: Path, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    path = storage.as_path(tmp_path / "final_model.pt")
    write_full_model({**merged_checkpoint(debug_model, any_adapter), "resume": vars(any_adapter)}, path, Event())
    loaders, conditioners = (import_audiocraft(f"audiocraft.{m}") for m in ("models.loaders", "modules.conditioners"))
    with contextlib.chdir(t5_directory):
        theirs = loaders.load_lm_model(str(path))
    codes = torch.randint(2048, (1, 4, 12), generator=torch.Generator().manual_seed(0))
    attributes = [conditioners.ConditioningAttributes(text={"description": "slow piano"})]
    with torch.inference_mode():
        expected = theirs.compute_predictions(codes, attributes)
        text = text_encoder.encode(["slow piano"])
        logits = load_merged(debug_model, any_adapter, "cpu", torch.float32)(delay(codes, 2048, steps=12), text)
        from_file = load_lm(Path(str(path)))(delay(codes, 2048, steps=12), text)
    for k in range(4):
        valid = expected.mask[0, k]
        for ours in (logits, from_file):
            torch.testing.assert_close(
                ours[0, k].roll(-k, dims=0)[valid], expected.logits[0, k][valid], atol=1e-5, rtol=0
            )


def test_a_full_model_keeps_the_bases_precision_and_is_rounded_once(fp16_model: BaseModel, adapter: Adapter) -> None:
    half = merged_checkpoint(fp16_model, adapter)["best_state"]
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    exact = load_merged(fp16_model, adapter, "cpu", torch.float64).state_dict()["model.decoder.layers.1.fc1.weight"]
    difference = half["transformer.layers.1.linear1.weight"].double() - exact
    assert difference.abs().max() <= exact.abs().max() * 2**-11 * 1.01


def test_a_full_model_has_the_bases_names_and_what_no_adapter_touches(debug_model: BaseModel, adapter: Adapter) -> None:
    base = torch.load(debug_model.lm_path, weights_only=True)
    merged = merged_checkpoint(debug_model, adapter)
    assert merged.keys() == base.keys() and merged["xp.cfg"] == base["xp.cfg"]
    assert merged["best_state"].keys() == base["best_state"].keys()
    changed = {n for n, t in merged["best_state"].items() if not torch.equal(t, base["best_state"][n])}
    assert changed == {n for n in base["best_state"] if n.startswith("transformer.layers.") and "norm" not in n}
