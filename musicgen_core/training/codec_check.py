"""Whether tokens are of a model's codec, found out in a moment: PyTorch is not loaded for it."""

from __future__ import annotations

import pyarrow as pa

from musicgen_core import storage
from musicgen_core.data.shards import another_codec, shard_codec
from musicgen_core.errors import TokensError
from musicgen_core.model.local_files import codec_here


def check_codec(tokens: str, model: str) -> None:
    """Refuse tokens of which every shard is of another codec than the model's, as far as that can be told here.

    Loading the clips compares each shard that is used, also with models that are still to be fetched.

    Raises:
        TokensError: the model can make nothing of any of the codes.
    """
    folder, codec = storage.as_path(tokens), codec_here(model)
    refused: TokensError | None = None
    for parquet in sorted(folder.glob("*.parquet")) if codec and folder.is_dir() else ():
        try:
            found, made_with = shard_codec(parquet)
        except (OSError, ValueError, pa.ArrowException):
            continue  # loading the clips says what is wrong with it
        if found == codec:
            return
        refused = refused or another_codec(parquet.name, made_with, model)
    if refused is not None:
        raise refused
