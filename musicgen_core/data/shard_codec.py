"""Codec of a shard and shape of its codes, from its schema, and the errors for shards that another model made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from musicgen_core.codes import CARDINALITY, MONO, STEREO, CodeShape
from musicgen_core.errors import TokensError
from musicgen_core.language import message
from musicgen_core.wording import counted, named


def shard_shape(schema: pa.Schema) -> CodeShape:
    """Return the shape of a shard's codes; without a number of channels it is mono.

    Raises:
        ValueError: the numbers in the schema are invalid.
    """
    metadata = schema.metadata or {}
    channels, cardinality = (
        int(metadata.get(name, default)) for name, default in ((b"channels", 1), (b"cardinality", CARDINALITY))
    )
    if channels not in (1, 2):
        raise ValueError(f"it has {channels} channels")
    shape = replace(MONO if channels == 1 else STEREO, cardinality=cardinality)
    if (codebooks := int(metadata.get(b"codebooks", shape.codebooks))) != shape.codebooks:
        raise ValueError(f"it has {codebooks} codebooks")
    if not 1 <= cardinality <= CARDINALITY:
        raise ValueError(f"its codebooks have {cardinality} codes")
    return shape


def shard_codec(parquet: Path | UPath) -> tuple[str, str]:
    """Return the identity of a shard's codec, and the name of its model or an empty string."""
    with parquet.open("rb") as file:
        metadata = pq.read_schema(file).metadata or {}
    codec, model = (metadata.get(key, b"").decode(errors="replace") for key in (b"codec", b"model"))
    return codec, model


def another_codec(shard: str, made_with: str, model: str) -> TokensError:
    """Return the error for a shard whose codes are of another codec than the model's.

    Args:
        made_with: name of the model that the shard was tokenized with; may be empty.
    """
    if made_with:
        advice = message("Give --model {model}, or tokenize again into another directory", model=made_with)
    else:
        advice = message("Give the model that it was tokenized with, or tokenize again into another directory")
    return TokensError(
        message(
            "the shard {shard} was tokenized with {made_with}, whose codec is not that of {model}",
            shard=shard,
            made_with=message("the model {name}", name=made_with) if made_with else message("another model"),
            model=model,
        ),
        advice,
    )


def another_shape(shard: str, found: CodeShape, expected: CodeShape) -> TokensError:
    """Return the error for a shard whose codes have another shape than the model's."""
    return TokensError(
        message(
            "the shard {shard} is {found}, and this run's model {expected}", shard=shard, found=found, expected=expected
        ),
        message("Give the model that it was tokenized with, or tokenize again into another directory"),
    )


def no_melodies(stems: Sequence[str], tokens: UPath, model: str) -> TokensError:
    """Return the error for shards without chroma, which a model is trained with."""
    return TokensError(
        message(
            "{shards} in {tokens} hold no melodies of their clips, and {model} is trained with them: {names}",
            shards=counted(len(stems), "shard"),
            tokens=tokens,
            model=model,
            names=named(stems),
        ),
        message("Tokenize again with --model {model}", model=model),
    )
