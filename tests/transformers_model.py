"""A model of this project as transformers' MusicgenForConditionalGeneration, as a reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from musicgen_core.model.audiocraft_format import from_audiocraft, read_checkpoint
from musicgen_core.model.weights import BaseModel, load_lm


def in_transformers(model: BaseModel) -> Any:
    """Return a MusicgenForConditionalGeneration with the model's text encoder and LM, and a random EnCodec."""
    from transformers import (
        EncodecConfig,
        EncodecModel,
        MusicgenDecoderConfig,
        MusicgenForCausalLM,
        MusicgenForConditionalGeneration,
        T5EncoderModel,
    )

    shape = load_lm(model).config
    hf = MusicgenForConditionalGeneration(
        text_encoder=T5EncoderModel.from_pretrained(model.text_encoder),
        audio_encoder=EncodecModel(
            EncodecConfig(
                target_bandwidths=[2.2],  # of 4 codebooks
                sampling_rate=32_000,
                upsampling_ratios=[8, 5, 4, 4],
                codebook_size=shape.cardinality,
                num_filters=4,
                hidden_size=16,
                codebook_dim=16,
            )
        ),
        decoder=MusicgenForCausalLM(
            MusicgenDecoderConfig(
                hidden_size=shape.dim,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                ffn_dim=shape.ffn_dim,
            )
        ),
    )
    state = from_audiocraft(read_checkpoint(model.lm_path)["best_state"])
    named = {name if name.startswith("enc_to_dec_proj") else f"decoder.{name}": state[name] for name in state}
    missing, unexpected = hf.load_state_dict(named, strict=False)
    assert not unexpected and all(name.startswith(("text_encoder.", "audio_encoder.")) for name in missing)
    generation = hf.generation_config
    generation.decoder_start_token_id = generation.pad_token_id = generation.bos_token_id = shape.codes.special
    return hf


class HfOracle:
    """Reference outputs of Hugging Face's model, with or without peft's adapter."""

    def __init__(self, tokenizer: Any, sequence: Tensor, prompt: str, frames: int, guidance: float) -> None:
        self._text, self._sequence = tokenizer([prompt], return_tensors="pt"), sequence
        self._frames, self._guidance = frames, guidance

    @torch.inference_mode()
    def logits(self, model: Any) -> Tensor:
        """Return the logits, [4, 16, 2048]."""
        return model(**self._text, decoder_input_ids=self._sequence.flatten(0, 1)).logits

    def codes(self, model: Any) -> Tensor:
        """Return the greedy codes, [4, frames], captured before EnCodec decodes them; converts the model to fp64."""
        caught: list[Tensor] = []

        def decode(codes: Tensor, *_: Any, **__: Any) -> Any:
            caught.append(codes[0, 0])
            return SimpleNamespace(audio_values=torch.zeros(1, 1, 1))

        model.double().audio_encoder.decode = decode
        model.generate(**self._text, do_sample=False, guidance_scale=self._guidance, max_new_tokens=self._frames + 3)
        return caught[0]
