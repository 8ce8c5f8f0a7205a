"""Test third-party corpora of decoders and archive readers: each file must give a row, a rejection, or a clear error.

    python -m bench.foreign_files FOLDER… [--show]

Every archive in the folders is tokenized with all of its members as clips. All other files are packed as clips into one
zip. Prints the results; anything else than a row, a rejection or an ArchiveError is a failure. Tested with SciPy's wavs
(scipy/io/tests/data), CPython's audiodata and archives (Lib/test) and Go's archives (src/archive/*/testdata).
"""

from __future__ import annotations

import argparse
import tempfile
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.errors import ArchiveError
from musicgen_core.model.weights import find_model
from musicgen_core.tokenizing import Tokenizer

ARCHIVES = (".zip", ".tar", ".gz", ".bz2", ".xz", ".notzip")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--show", action="store_true", help="print every rejection and error")
    given = parser.parse_args()
    codec = Codec(find_model("debug"))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for number, folder in enumerate(given.folders):
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            packed = Path(scratch) / f"packed_{number}.zip"
            with zipfile.ZipFile(packed, "w") as archive:
                for path in files:
                    if path.suffix not in ARCHIVES:
                        archive.write(path, f"{path.name}.wav")
            for path in [packed, *(path for path in files if path.suffix in ARCHIVES)]:
                tokenizer = Tokenizer(codec, storage.as_path(Path(scratch) / f"tokens_{number}_{path.name}"))
                try:
                    with (
                        patch("musicgen_core.data.zip_archive.is_clip", is_file),
                        patch("musicgen_core.data.tar_archive.is_clip", is_file),
                    ):
                        report = tokenizer.tokenize(storage.as_path(path))
                except ArchiveError as error:
                    counts["archives refused"] += 1
                    lines = [f"{path.name}: {error}"]
                except Exception:
                    counts["FAILURES"] += 1
                    lines = [f"{path.name}: {traceback.format_exc()}"]
                else:
                    counts["archives read"] += 1
                    counts["rows"] += report.clips
                    counts["rejections"] += len(report.rejected)
                    lines = [f"{path.name}: {entry.clip}: {entry.reason}" for entry in report.rejected]
                if given.show:
                    print("\n".join(lines) or f"{path.name}: {report.clips} rows")
    print(dict(counts))
    return 1 if counts["FAILURES"] else 0


def is_file(name: str) -> bool:
    return not name.endswith("/")


if __name__ == "__main__":
    raise SystemExit(main())
