"""Configurations are read as audiocraft reads them: the same model, or a refusal that names the setting."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import MONO, STEREO, CodeShape
from musicgen_core.errors import ModelError
from musicgen_core.model import configuration
from musicgen_core.model.audiocraft_format import to_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.debug_model import CODEC_CONFIG, LM_CONFIG
from musicgen_core.model.decoder import delay
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import load_lm

Export = Callable[[dict[str, Any]], tuple[Any, Path]]
BASE: dict[str, Any] = yaml.safe_load(LM_CONFIG)
MISSING = object()
# What audiocraft's builders can't do without; all else has its default.
LEAN: dict[str, Any] = {
    **{"lm_model": "transformer_lm", "device": "cpu", "dtype": "float32", "dataset": {"segment_duration": 30}},
    "transformer_lm": {
        **{"n_q": 4, "card": 2048, "dim": 32, "num_layers": 2, "num_heads": 4, "q_modeling": "delay"},
        **{"activation": "gelu", "norm_first": True, "causal": True, "memory_efficient": True},
        **{"bias_ff": False, "bias_attn": False, "bias_proj": False},
    },
    "codebooks_pattern": {"modeling": None, "delay": {"delays": [0, 0, 0, 0]}},
    "classifier_free_guidance": {"training_dropout": 0.3, "inference_coef": 3.0},
    "attribute_dropout": {},
    "fuser": {"sum": [], "prepend": [], "cross": ["description"], "input_interpolate": []},
    "conditioners": {"description": {"model": "t5", "t5": {"name": "t5-small", "finetune": False}}},
}


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with settings changed, named with __ for dots; `MISSING` deletes one."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *sections, last = name.split("__")
        section = config
        for key in sections:
            section = section.setdefault(key, {})
        if value is MISSING:
            del section[last]
        else:
            section[last] = value
    return config


@pytest.fixture
def export(t5_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Export:
    """Build a model with audiocraft, train nothing, and let audiocraft export it → the model and the file."""
    from omegaconf import OmegaConf

    def export(settings: dict[str, Any]) -> tuple[Any, Path]:
        monkeypatch.chdir(t5_directory)
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # audiocraft reads its own training checkpoint
        torch.manual_seed(0)
        config = OmegaConf.create(settings)
        model = import_audiocraft("audiocraft.models.builders").get_lm_model(config).eval()
        checkpoint = {"fsdp_best_state": {}, "best_state": {"model": model.state_dict()}, "xp.cfg": config}
        torch.save(checkpoint, tmp_path / "checkpoint.th")
        exported = tmp_path / "state_dict.bin"
        import_audiocraft("audiocraft.utils.export").export_lm(tmp_path / "checkpoint.th", exported)
        monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
        return model, exported

    return export


@pytest.mark.parametrize(
    "config",
    [
        LEAN,
        changed(BASE, codebooks_pattern__delay=MISSING, n_q=4, transformer_lm__n_q="${n_q}"),
        changed(BASE, transformer_lm__memory_efficient=False, transformer_lm__custom=True, codebooks_pattern__delay={}),
        changed(BASE, transformer_lm__memory_efficient=False, fuser__cross_attention_pos_emb=MISSING),
        changed(
            BASE,
            transformer_lm__n_q=8,
            interleave_stereo_codebooks={"use": True, "per_timestep": False},
            codebooks_pattern__delay__delays=[0, 0, 1, 1, 2, 2, 3, 3],
        ),
    ],
    ids=["defaults", "references", "custom attention", "torch's attention", "stereo"],
)
@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE")
@torch.inference_mode()
def test_an_exported_model_has_audiocrafts_logits(
    config: dict[str, Any], export: Export, text_encoder: TextEncoder
) -> None:
    theirs, path = export(config)
    lm = load_lm(path)
    codes = torch.randint(2048, (1, lm.config.codebooks, 9), generator=torch.Generator().manual_seed(0))
    sequence = delay(codes, lm.config.codes)
    conditions = import_audiocraft("audiocraft.modules.conditioners")
    text = "a slow piano"
    expected = theirs(sequence, [conditions.ConditioningAttributes(text={"description": text})])
    torch.testing.assert_close(lm(sequence, text_encoder.encode([text])), expected, atol=1e-5, rtol=0)
    theirs.load_state_dict(to_audiocraft(lm.state_dict()))  # audiocraft takes it back


def test_guidance_and_dropout_are_the_checkpoints() -> None:
    config = read_lm_config(
        changed(
            BASE,
            attribute_dropout={"args": {"active_on_eval": False}, "text": {"description": 0.5}, "wav": {}},
            classifier_free_guidance={"training_dropout": 0.2, "inference_coef": 4},
            conditioners__description__t5__word_dropout=0.3,
        ),
        "here",
    )
    assert config.training_dropout == pytest.approx(0.6)
    assert (config.inference_coefficient, config.word_dropout) == (4.0, 0.3)
    assert read_lm_config(LM_CONFIG, "here").training_dropout == 0.3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"transformer_lm__n_q": 2}, "transformer_lm.n_q is 2"),
        ({"transformer_lm__card": 4096}, "transformer_lm.card is 4096"),
        ({"transformer_lm__causal": False}, "transformer_lm.causal is false"),
        ({"transformer_lm__causal": MISSING}, "transformer_lm.causal is false by default"),
        ({"transformer_lm__activation": MISSING}, 'transformer_lm.activation is "relu" by default'),
        ({"transformer_lm__norm_first": False}, "transformer_lm.norm_first is false"),
        ({"transformer_lm__positional_embedding": "rope"}, 'transformer_lm.positional_embedding is "rope"'),
        ({"transformer_lm__positional_scale": 0.5}, "transformer_lm.positional_scale is 0.5"),
        ({"transformer_lm__max_period": 500}, "transformer_lm.max_period is 500"),
        ({"transformer_lm__past_context": 100}, "transformer_lm.past_context is 100"),
        ({"transformer_lm__layer_scale": 1e-4}, "transformer_lm.layer_scale is 0.0001"),
        ({"transformer_lm__bias_ff": True}, "transformer_lm.bias_ff is true"),
        ({"transformer_lm__qk_layer_norm_cross": True}, "transformer_lm.qk_layer_norm_cross is true"),
        ({"transformer_lm__kv_repeat": 2}, "transformer_lm.kv_repeat is 2"),
        ({"transformer_lm__softcap": 30}, "transformer_lm.softcap is 30"),
        ({"transformer_lm__num_heads": 0}, "transformer_lm.num_heads is 0"),
        ({"transformer_lm__dim": "???"}, 'transformer_lm.dim is "???"'),
        ({"codebooks_pattern__modeling": "parallel"}, 'codebooks_pattern.modeling is "parallel"'),
        ({"codebooks_pattern__modeling": None}, "codebooks_pattern.modeling is null"),
        ({"codebooks_pattern__delay__delays": [0, 1, 2, 4]}, "codebooks_pattern.delay.delays is [0, 1, 2, 4]"),
        ({"codebooks_pattern__delay__empty_initial": 1}, "codebooks_pattern.delay.empty_initial is 1"),
        ({"codebooks_pattern__delay__flatten_first": 2}, "codebooks_pattern.delay.flatten_first is 2"),
        ({"fuser__cross_attention_pos_emb": True}, "fuser.cross_attention_pos_emb is true"),
        ({"fuser__prepend": ["description"]}, 'fuser.prepend is ["description"]'),
        ({"fuser__cross": []}, "fuser.cross is []"),
        ({"conditioners__description__t5__normalize_text": True}, "description.t5.normalize_text is true"),
        ({"conditioners__description__t5__finetune": True}, "description.t5.finetune is true"),
        ({"conditioners__description__t5__name": "t5-11b"}, 'description.t5.name is "t5-11b"'),
        ({"conditioners__description__model": "clap"}, 'conditioners.description.model is "clap"'),
        ({"conditioners__genre": {"model": "lut"}}, 'conditioners.genre.model is "lut"'),
        ({"conditioners": None}, "conditioners.description.model is null"),
        ({"classifier_free_guidance__training_dropout": "much"}, 'training_dropout is "much"'),
        ({"compression_model_n_q": 2}, "compression_model_n_q is 2"),
        ({"interleave_stereo_codebooks": {"use": True}, "transformer_lm__n_q": 8}, "delay.delays is [0, 1, 2, 3]"),
        ({"interleave_stereo_codebooks": {"use": True, "per_timestep": True}}, "per_timestep is true"),
        ({"interleave_stereo_codebooks": {"use": True}}, "transformer_lm.n_q is 4"),
        ({"transformer_lm__n_q": 8}, "transformer_lm.n_q is 8"),
        ({"conditioners__self_wav": {"model": "chroma_stem"}}, "chroma_stem.argmax is false by default"),
        ({"conditioners__self_wav": {"model": "chroma_stem"}}, 'fuser.cross is ["description"]'),
        ({"conditioners__self_wav": {"model": "chroma_stem"}}, "fuser.prepend is []"),
        ({"conditioners__self_wav": {"model": "chroma_stem", "chroma_stem": {"n_chroma": 24}}}, "n_chroma is 24"),
        ({"conditioners__self_wav": {"model": "chroma_stem"}, "dataset__segment_duration": 0}, "segment_duration is 0"),
        ({"conditioners__self_wav": {"model": "style"}}, "is a style checkpoint"),
        ({"lm_model": "transformer_lm_magnet"}, "is a MAGNeT checkpoint"),
        ({"transformer_lm": MISSING}, "no transformer_lm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_named_with_its_value(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError) as refused:
        read_lm_config(changed(BASE, **changes), "a/state_dict.bin")
    assert named in refused.value.found and "a/state_dict.bin" in refused.value.found
    assert "facebook/musicgen-large" in refused.value.next_step


def test_all_that_is_not_supported_is_named_at_once() -> None:
    with pytest.raises(ModelError, match=r"causal is false.*empty_initial is 1.*normalize_text is true"):
        read_lm_config(
            changed(
                BASE,
                transformer_lm__causal=False,
                codebooks_pattern__delay__empty_initial=1,
                conditioners__description__t5__normalize_text=True,
            ),
            "here",
        )


@pytest.mark.parametrize("codes", [MONO, STEREO])
def test_every_setting_of_audiocrafts_is_known_with_its_default(codes: CodeShape) -> None:
    """None of them is passed over: each changes the result and is checked, or is known to leave it as it is."""

    def parameters(module: str, name: str) -> dict[str, Any]:
        function = getattr(import_audiocraft(f"audiocraft.{module}"), name).__init__
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

    lm = {
        **parameters("modules.transformer", "StreamingTransformer"),
        **parameters("modules.transformer", "StreamingTransformerLayer"),
        **parameters("models.lm", "LMModel"),
        "activation": "relu",  # of torch's TransformerEncoderLayer
    }
    built = {"self", "kwargs", "device", "dtype", "layer_class", "rope", "d_model", "dim_feedforward"}
    built |= {"pattern_provider", "condition_provider", "fuser", "cfg_dropout", "cfg_coef", "attribute_dropout"}
    known = {*configuration._language_model(codes), *configuration._SHAPES}
    known |= {*configuration._IMPLEMENTATIONS, *configuration._TRAINING} - {"q_modeling"}
    assert lm.keys() - built == known - {"q_modeling"}
    for section, theirs in (
        (configuration._language_model(codes), lm),
        (configuration._T5, {**parameters("modules.conditioners", "T5Conditioner"), "finetune": False}),
        (configuration._FUSER, {**parameters("modules.conditioners", "ConditionFuser"), "cross": []}),
        (
            configuration._delay(codes),
            {**parameters("modules.codebooks_patterns", "DelayedPatternProvider")}
            | {"delays": list(range(codes.codebooks))},
        ),
    ):
        assert {name: default for name, (default, _) in section.items()} == {name: theirs[name] for name in section}


# Hostile and damaged files


def test_no_resolver_is_ever_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    harmless = changed(BASE, dora={"dir": "${oc.env:WANDB_API_KEY}"})
    assert read_lm_config(yaml.safe_dump(harmless), "here") == read_lm_config(LM_CONFIG, "here")
    for name in ("transformer_lm__activation", "conditioners__description__t5__name", "codebooks_pattern__modeling"):
        for value in ("${oc.env:WANDB_API_KEY}", "${key}", "${oc.decode:${oc.env:WANDB_API_KEY}}"):
            config = changed(BASE, key="${oc.env:WANDB_API_KEY}", **{name: value})
            with pytest.raises(ModelError) as refused:
                read_lm_config(yaml.safe_dump(config), "here")
            assert "${oc." in refused.value.found and "a-secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]",
        "!!python/object/apply:os.getcwd []",
        "a: [",
        "[1, 2]",
        "",
        "\x00",
        "[" * 1500,
        "transformer_lm: ${lm}\nlm: ${transformer_lm}",
        "transformer_lm: {dim: '${a}'}\na: ${b}\nb: ${a}",
    ],
    ids=["aliases", "python", "unclosed", "a list", "empty", "a zero", "deep", "no section", "a loop of references"],
)
def test_a_configuration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="here") as refused:
        read_lm_config(text, "here")
    assert "\n" not in str(refused.value)


PATHS = [(section,) for section in BASE] + [(s, key) for s in BASE if isinstance(BASE[s], dict) for key in BASE[s]]
JUNK = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.just("${device}")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PATHS), JUNK | st.lists(JUNK, max_size=2) | st.dictionaries(st.text(max_size=3), JUNK, max_size=2)
)
def test_any_configuration_is_read_or_refused(path: tuple[str, ...], junk: Any) -> None:
    with contextlib.suppress(ModelError):
        read_lm_config(changed(BASE, **{"__".join(path): junk}), "here")


def test_a_codecs_configuration_is_no_language_models() -> None:
    with pytest.raises(ModelError, match="not a language model"):
        read_lm_config(CODEC_CONFIG, "here")
