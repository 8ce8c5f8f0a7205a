"""Tempo and key by librosa of the clips of bench.captioning_accuracy, for comparison; needs only librosa 0.11.

    python -m bench.captioning_librosa DIR

Tempo: `librosa.feature.tempo` with its defaults. Key, which librosa doesn't estimate: the best correlation of the mean
`librosa.feature.chroma_cqt`, which adapts to the tuning, with Krumhansl and Kessler's profiles.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import librosa
import numpy as np

RATE = 32_000
CUT_SECONDS = 7
PROFILES = {
    "major": [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
    "minor": [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
}


def key(chroma: np.ndarray) -> tuple[int, str]:
    """Return root and mode of a chromagram [12, frames]."""
    mean = chroma.mean(1)
    scores = {
        (root, mode): np.corrcoef(mean, np.roll(profile, root))[0, 1]
        for mode, profile in PROFILES.items()
        for root in range(12)
    }
    return max(scores, key=lambda each: float(scores[each]))


def main() -> None:
    folder = Path(sys.argv[1])
    for path in sorted(folder.glob("*.npy")):
        tempos, keys, cut_keys = [], [], []
        for clip in np.load(path):
            tempos.append(float(librosa.feature.tempo(y=clip, sr=RATE)[0]))
            chroma = librosa.feature.chroma_cqt(y=clip, sr=RATE)
            keys.append(key(chroma))
            cut_keys.append(key(chroma[:, CUT_SECONDS * RATE // 512 :]))
        result = {"tempos": tempos, "keys": keys, "cut_keys": cut_keys}
        path.with_name(f"{path.stem}_librosa.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
