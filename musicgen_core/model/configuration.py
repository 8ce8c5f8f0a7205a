"""Read the `xp.cfg` of audiocraft's checkpoints with audiocraft's defaults, and refuse by name what is not supported.

`${sample_rate}` refers to another setting of the same file and is followed. Resolvers such as `${oc.env:HOME}`, which
would read this machine, are never run: a setting that needs one is refused.

Source of names, defaults and fallbacks: audiocraft 1.3.0, `models/builders.py`, `models/lm.py`,
`modules/transformer.py`, `modules/conditioners.py` and `modules/codebooks_patterns.py`.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from musicgen_core.codes import CARDINALITY, CODEBOOKS, MONO, SAMPLE_RATE, STEREO, CodeShape
from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.melody import HOP, WINDOW
from musicgen_core.model.decoder import DecoderConfig
from musicgen_core.music_theory import PITCH_CLASSES

CONDITIONED_ON = {
    "style": message("features of a style excerpt by MERT, a network that is not part of this project"),
}
"""What the decoder of an unsupported kind of checkpoint reads beside the text"""
USE_ANOTHER = "Use facebook/musicgen-small, facebook/musicgen-medium or facebook/musicgen-large"
_DEFAULT_CARDINALITY = 1024
_DEFAULT_CODEBOOKS = 8
T5_WIDTHS = {"t5-small": 512, "t5-base": 768, "t5-large": 1024}  # as in audiocraft's T5Conditioner

# Settings that change what is computed: audiocraft's default, and the only value that this decoder computes.
_LANGUAGE_MODEL: dict[str, tuple[Any, Any]] = {
    "norm": ("layer_norm", "layer_norm"),
    "norm_first": (False, True),
    "activation": ("relu", "gelu"),
    "causal": (False, True),
    "past_context": (None, None),
    "bias_ff": (True, False),
    "bias_attn": (True, False),
    "bias_proj": (True, False),
    "layer_scale": (None, None),
    "positional_embedding": ("sin", "sin"),
    "positional_scale": (1, 1),
    "max_period": (10_000, 10_000),
    "qk_layer_norm": (False, False),
    "qk_layer_norm_cross": (False, False),
    "kv_repeat": (1, 1),
}
_INTERLEAVING = {"use": (False, True), "per_timestep": (False, False)}
_FUSER = {"cross": ([], ["description"]), "cross_attention_pos_emb": (False, False)}
_MELODY = "self_wav"
"""The conditioner of a melody, which stands before the text, and both before the codes, whatever `prepend`'s order"""
_CHROMA = {
    "sample_rate": (None, SAMPLE_RATE),
    "n_chroma": (None, PITCH_CLASSES),
    "radix2_exp": (None, WINDOW.bit_length() - 1),
    "argmax": (False, True),
    "nfft": (None, None),
    "winlen": (None, None),
    "winhop": (None, None),
}
_T5 = {"finetune": (False, False), "normalize_text": (False, False)}

# Settings that leave the result as it is: shapes, which are read elsewhere, …
_SHAPES = {"card", "dim", "num_heads", "num_layers", "hidden_scale", "q_modeling"}
# … implementations and precisions of the same arithmetic, …
_IMPLEMENTATIONS = {"custom", "memory_efficient", "attention_as_float32", "checkpointing", "two_step_cfg"}
_IMPLEMENTATIONS |= {"cross_attention", "xpos"}  # audiocraft switches on the one itself; the other belongs to rope
# … and how audiocraft trains a whole model, where a run here trains an adapter with settings of its own.
_TRAINING = {"dropout", "attention_dropout", "emb_lr", "lr", "weight_decay"}
_TRAINING |= {"weight_init", "depthwise_init", "zero_bias_init"}
# `MusicGen.get_pretrained` sets the first; the others are how audiocraft evaluates and caches.
_CHROMA_LOADING = {"match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path"}

_REFERENCE = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
_MOST_REFERENCES = 16  # from one setting to the next


@dataclass(frozen=True)
class LmConfig:
    """Settings of a language model.

    Attributes:
        training_dropout: share of clips that it was trained on without their text.
        word_dropout: share of words that were left out of the texts in training.
        inference_coefficient: of classifier-free guidance.
        melody_dropout: share of clips with their text that it was trained on without their melody.
    """

    decoder: DecoderConfig
    t5: str
    training_dropout: float
    word_dropout: float
    inference_coefficient: float
    melody_dropout: float = 0.0


class XpConfig:
    """The settings of an `xp.cfg`, by dotted names.

    Args:
        content: YAML, or its parsed content.
        source: the checkpoint's name in errors.

    Raises:
        ModelError: the content is not a YAML mapping.
    """

    def __init__(self, content: object, source: object) -> None:
        self.source = source
        try:
            parsed = yaml.load(content, _WithoutAliases) if isinstance(content, str) else content
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise self.unreadable(f"its xp.cfg is no YAML: {textwrap.shorten(str(error), 200)}") from error
        if not isinstance(parsed, dict):
            raise self.unreadable("its xp.cfg is no mapping")
        self._settings: dict[str, Any] = parsed

    def unreadable(self, reason: str) -> ModelError:
        return ModelError(
            message("{source} can't be used ({reason})", source=self.source, reason=reason),
            message("Give the directory of a checkpoint that audiocraft exported"),
        )

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting with its references resolved, or `default`; a section is a dictionary."""
        value = self._raw(name)
        return default if value is _MISSING else self._follow(value)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section, empty if it is missing or null."""
        value = self.get(name)
        return value if isinstance(value, dict) else {}

    def _raw(self, name: str) -> Any:
        value: Any = self._settings
        for key in name.split("."):
            value = value.get(key, _MISSING) if isinstance(value, dict) else _MISSING
        return value

    def _follow(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): self._follow(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._follow(item) for item in value]
        return self._refer(value)

    def _refer(self, value: Any) -> Any:
        """Return a reference's target, unless it is a section: references to sections could nest without bound."""
        target = value
        for _ in range(_MOST_REFERENCES):
            match = _REFERENCE.fullmatch(target) if isinstance(target, str) else None
            if match is None:
                return target
            target = self._raw(match[1])
            if target is _MISSING or isinstance(target, (dict, list)):
                break
        return value


_MISSING = object()


class _WithoutAliases(yaml.SafeLoader):
    """A YAML loader that refuses aliases: audiocraft writes none, and a few lines of them can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        return super().compose_node(parent, index)


def shown(value: Any) -> str:
    """Return a setting's value on one line, in ASCII, because errors show untrusted values."""
    return textwrap.shorten(json.dumps(value, default=str), 100)


def read_lm_config(content: object, source: object) -> LmConfig:
    """Return the language model that an `xp.cfg` describes.

    Raises:
        ModelError: it describes none, or has unsupported settings, all of which are named with their values.
    """
    config = XpConfig(content, source)
    if not config.section("transformer_lm"):
        raise ModelError(
            message("{source} is not a language model (its xp.cfg has no transformer_lm)", source=source), USE_ANOTHER
        )
    kind = _kind(config)
    problems = list(_problems(config))
    if problems:
        found = "; ".join(problems)
        if kind:
            raise ModelError(
                message(
                    "{source} is a {kind} checkpoint, which is not supported yet{because}: {problems}",
                    source=source,
                    kind=kind,
                    because=because(kind),
                    problems=found,
                ),
                USE_ANOTHER,
            )
        raise ModelError(message("{source} is not supported: {problems}", source=source, problems=found), USE_ANOTHER)
    lm = config.section("transformer_lm")
    name = config.get("conditioners.description.t5.name")
    dropout = float(config.get("classifier_free_guidance.training_dropout", 0.0))
    dropout += (1 - dropout) * config.get("attribute_dropout.text.description", 0.0)
    return LmConfig(
        decoder=DecoderConfig(
            dim=lm["dim"],
            layers=lm["num_layers"],
            heads=lm["num_heads"],
            ffn_dim=int(lm.get("hidden_scale", 4) * lm["dim"]),
            text_dim=T5_WIDTHS[t5_size(name)],
            codes=replace(_shape(config), cardinality=lm.get("card", _DEFAULT_CARDINALITY)),
            chroma_frames=chroma_frames(config.get("dataset.segment_duration")) if _takes_melody(config) else 0,
        ),
        t5=name,
        training_dropout=dropout,
        word_dropout=float(config.get("conditioners.description.t5.word_dropout", 0.0)),
        inference_coefficient=float(config.get("classifier_free_guidance.inference_coef", 3.0)),
        melody_dropout=float(config.get(f"attribute_dropout.wav.{_MELODY}", 0.0)),
    )


def chroma_frames(seconds: float) -> int:
    """Return the frames of chroma of so many seconds: the first is at the beginning."""
    return 1 + int(seconds * SAMPLE_RATE) // HOP


def melody_seconds(frames: int) -> float:
    """Return a duration of which `chroma_frames` returns so many frames, in whole seconds if there is one."""
    seconds = (frames - 0.5) * HOP / SAMPLE_RATE
    return round(seconds) if chroma_frames(round(seconds)) == frames else seconds


def because(kind: str) -> str:
    """Return why a kind of checkpoint is not supported, as the end of a sentence; empty if that needs no reason."""
    what = CONDITIONED_ON.get(kind)
    return message(" (it is conditioned on {what})", what=what) if what else ""


def _kind(config: XpConfig) -> str | None:
    """Return the kind of an unsupported checkpoint, if this project knows it."""
    models = {value.get("model") for value in config.section("conditioners").values() if isinstance(value, dict)}
    if config.get("lm_model") == "transformer_lm_magnet":
        return "MAGNeT"
    return "style" if "style" in models else None


def _takes_melody(config: XpConfig) -> bool:
    return config.get(f"conditioners.{_MELODY}.model") == "chroma_stem"


def _shape(config: XpConfig) -> CodeShape:
    """Return the shape of the codes, but for the cardinality."""
    return STEREO if config.get("interleave_stereo_codebooks.use") else MONO


def _language_model(codes: CodeShape) -> dict[str, tuple[Any, Any]]:
    return {**_LANGUAGE_MODEL, "n_q": (_DEFAULT_CODEBOOKS, codes.codebooks)}


def _delay(codes: CodeShape) -> dict[str, tuple[Any, Any]]:
    delays = (list(range(codes.codebooks)), list(codes.delays))
    return {"delays": delays, "flatten_first": (0, 0), "empty_initial": (0, 0)}


def _problems(config: XpConfig) -> Iterator[str]:
    """Yield each unsupported setting, with its value."""
    lm, codes = config.section("transformer_lm"), _shape(config)
    if config.get("lm_model") != "transformer_lm":
        yield f"lm_model is {shown(config.get('lm_model'))}"
    yield from differing("transformer_lm", lm, _language_model(codes))
    if codes.channels > 1:
        interleaving = config.section("interleave_stereo_codebooks")
        yield from differing("interleave_stereo_codebooks", interleaving, _INTERLEAVING)
    known = {*_language_model(codes), *_SHAPES, *_IMPLEMENTATIONS, *_TRAINING}
    yield from _unknown("transformer_lm", lm, known)
    yield from _wrong_shape(lm)
    yield from _pattern_problems(config, codes)
    yield from _fuser_problems(config)
    yield from _conditioner_problems(config)
    codebooks = config.get("compression_model_n_q")
    if codebooks not in (None, CODEBOOKS):
        yield f"compression_model_n_q is {shown(codebooks)}"
    for name in ("classifier_free_guidance.training_dropout", "attribute_dropout.text.description"):
        yield from not_between(name, config.get(name, 0), 1)
    coefficient = "classifier_free_guidance.inference_coef"
    yield from not_between(coefficient, config.get(coefficient, 3), 1000)
    if _takes_melody(config):
        yield from _melody_problems(config)


def _fuser_problems(config: XpConfig) -> Iterator[str]:
    fuser, both = config.section("fuser"), {_MELODY, "description"}
    takes_melody = _takes_melody(config)
    yield from differing("fuser", fuser, {**_FUSER, "cross": ([], [])} if takes_melody else _FUSER)
    for way in ("sum", "prepend", "input_interpolate"):
        names = fuser.get(way) or []
        if takes_melody and way == "prepend":
            fits = isinstance(names, list) and len(names) == len(both) and both.issuperset(map(str, names))
        else:
            fits = isinstance(names, list) and "description" not in names and not (takes_melody and _MELODY in names)
        if not fits:
            yield f"fuser.{way} is {shown(fuser.get(way))}"


def _melody_problems(config: XpConfig) -> Iterator[str]:
    chroma = config.section(f"conditioners.{_MELODY}.chroma_stem")
    section = f"conditioners.{_MELODY}.chroma_stem"
    yield from differing(section, chroma, _CHROMA)
    yield from _unknown(section, chroma, {*_CHROMA, *_CHROMA_LOADING})
    dropout = f"attribute_dropout.wav.{_MELODY}"
    yield from not_between(dropout, config.get(dropout, 0), 1)
    seconds = config.get("dataset.segment_duration")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 1 <= seconds <= 600:
        yield f"dataset.segment_duration is {shown(seconds)}"


def differing(section: str, values: Mapping[str, Any], supported: Mapping[str, tuple[Any, Any]]) -> Iterator[str]:
    for name, (default, ours) in supported.items():
        value = values.get(name, default)
        if value != ours:
            by_default = "" if name in values else " by default"
            yield f"{section}.{name} is {shown(value)}{by_default}"


def _unknown(section: str, values: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    """Yield settings that audiocraft doesn't have, because they may change anything."""
    for name in sorted(values.keys() - known):
        yield f"{section}.{name} is {shown(values[name])}"


def _wrong_shape(lm: Mapping[str, Any]) -> Iterator[str]:
    wrong = [name for name in ("dim", "num_layers", "num_heads") if type(lm.get(name)) is not int or lm[name] < 1]
    for name in wrong:
        yield f"transformer_lm.{name} is {shown(lm.get(name))}"
    if not wrong and (lm["dim"] % lm["num_heads"] or lm["dim"] % 2):
        yield f"transformer_lm.dim is {lm['dim']} and num_heads {lm['num_heads']}"
    cardinality = lm.get("card", _DEFAULT_CARDINALITY)
    if type(cardinality) is not int or not 1 <= cardinality <= CARDINALITY:
        yield f"transformer_lm.card is {shown(cardinality)}"
    scale = lm.get("hidden_scale", 4)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1000:
        yield f"transformer_lm.hidden_scale is {shown(scale)}"


def _pattern_problems(config: XpConfig, codes: CodeShape) -> Iterator[str]:
    """Yield unsupported settings of the pattern; without `modeling`, audiocraft uses `q_modeling` with its defaults."""
    modeling = config.get("codebooks_pattern.modeling")
    settings = config.section(f"codebooks_pattern.{modeling}")
    if modeling is None:
        settings = {}
        modeling = config.get("transformer_lm.q_modeling", config.get("codebooks_pattern.q_modeling"))
    if modeling != "delay":
        yield f"codebooks_pattern.modeling is {shown(modeling)}"
        return
    settings = {name: value for name, value in settings.items() if (name, value) != ("delays", None)}
    yield from differing("codebooks_pattern.delay", settings, _delay(codes))
    yield from _unknown("codebooks_pattern.delay", settings, set(_delay(codes)))


def _conditioner_problems(config: XpConfig) -> Iterator[str]:
    conditioners = config.section("conditioners")
    supported = {"args", "description", *([_MELODY] if _takes_melody(config) else [])}
    for name in sorted(conditioners.keys() - supported):
        model = conditioners[name].get("model") if isinstance(conditioners[name], dict) else conditioners[name]
        yield f"conditioners.{name}.model is {shown(model)}"
    model = config.get("conditioners.description.model")
    if model != "t5":
        yield f"conditioners.description.model is {shown(model)}"
        return
    t5 = config.section("conditioners.description.t5")
    if t5_size(t5.get("name")) not in T5_WIDTHS:
        yield f"conditioners.description.t5.name is {shown(t5.get('name'))}"
    yield from differing("conditioners.description.t5", t5, _T5)
    yield from _unknown("conditioners.description.t5", t5, {"name", "autocast_dtype", "word_dropout", *_T5})
    yield from not_between("conditioners.description.t5.word_dropout", t5.get("word_dropout", 0), 1)


def not_between(name: str, value: Any, most: float) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        yield f"{name} is {shown(value)}"


def t5_size(name: object) -> str:
    return str(name).removeprefix("google/flan-")
