r"""What TensorFlow gives for musicnn's networks, with librosa's spectrograms. Needs both, and nothing of this project.

    uv run --no-project --python 3.11 --with tensorflow-cpu==2.21.0 --with librosa==0.11.0 --with soxr \
        --with soundfile python -m bench.tagger_reference WEIGHTS REFERENCE.npz [RECORDING ...]

WEIGHTS is the directory of the package musicnn, `.venv/lib/python3.11/site-packages/musicnn` for instance. Each
network is the graph in its `.meta`, without training and with the checkpoint's variables as constants: the layers' own
code doesn't run in TensorFlow 2.16 and newer. `bench.tagger` compares the result.

    … python -m bench.tagger_reference WEIGHTS tests/musicgen_core/captioning/musicnn.npz --fixture

writes what the tests compare, of `seeded_clip` alone.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
FRAMES = 187
EVERY = 40
"""The fixture has one of so many frames of the spectrogram."""

Audio = NDArray[np.float32]


def seeded_clip(seed: int = 0, seconds: float = 6.5) -> Audio:
    """Return notes of decaying harmonics over a little noise, the same bits on every machine up to sin and exp."""
    rng = np.random.Generator(np.random.PCG64(seed))
    time_axis = np.arange(round(seconds * RATE)) / RATE
    audio = (rng.integers(-1000, 1001, len(time_axis)) / 200_000).astype(np.float64)
    for note in range(round(4 * seconds)):
        since = np.maximum(time_axis - note / 4, 0)
        hertz = 110 * 2 ** (int(rng.integers(0, 37)) / 12)
        for harmonic in range(1, 6):
            audio += 0.2 / harmonic * np.exp(-4 * since) * np.sin(2 * np.pi * hertz * harmonic * since)
    return (audio / max(1.0, np.abs(audio).max())).astype(np.float32)


def clips(recordings: list[Path]) -> dict[str, Audio]:
    """Return what is compared: recordings at 16 kHz, the seeded clip, noise of three levels, a sine and silence."""
    found = {"seeded": seeded_clip()}
    if recordings:
        import soundfile
        import soxr
    for path in recordings:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        found[path.stem] = soxr.resample(audio.mean(1), rate, RATE).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(RATE * 10)
    for name, level in (("quiet noise", 5e-4), ("noise", 0.1), ("clipped noise", 1.0)):
        found[name] = np.clip(level * noise, -1, 1).astype(np.float32)
    found["sine"] = np.sin(2 * np.pi * 440 / RATE * np.arange(RATE * 4)).astype(np.float32)
    return found | {"silence": np.zeros(RATE * 4, np.float32)}


def spectrogram(audio: Audio) -> Audio:
    """Return what musicnn's extractor computes with the librosa and numpy of 2019, [frames, 96].

    librosa's padding was `reflect` until 0.10. numpy 1 computed the logarithm of fp16 values in fp32; numpy 2 does in
    fp16, in which 10,000 · mel overflows at a mel of 6.55.
    """
    import librosa

    mel = librosa.feature.melspectrogram(y=audio, sr=RATE, n_fft=512, hop_length=256, n_mels=96, pad_mode="reflect").T
    return np.asarray(np.log10(10_000 * mel.astype(np.float16).astype(np.float32) + 1), np.float32)


def predict(weights: Path, name: str, patches: dict[str, Audio]) -> dict[str, Audio]:
    """Return a network's probabilities [P, 50] and penultimate activations [P, 200] of patches [P, 187, 96]."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    tf = tensorflow.compat.v1
    tf.disable_eager_execution()
    meta = tf.MetaGraphDef.FromString((weights / name / ".meta").read_bytes())
    for node in meta.graph_def.node:
        node.attr.pop("_output_shapes", None)
        node.attr.pop("_class", None)
    outputs = ["model/Sigmoid", "model/batch_normalization_10/batchnorm/add_1"]
    graph = tf.graph_util.extract_sub_graph(meta.graph_def, outputs)
    checkpoint = tf.train.NewCheckpointReader(f"{weights / name}/")
    for node in graph.node:
        if node.op == "VariableV2":
            value = tf.make_tensor_proto(checkpoint.get_tensor(node.name))
            node.CopyFrom(tf.NodeDef(name=node.name, op="Const"))
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
    found: dict[str, Audio] = {}
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph, name="")
        for clip, batch in patches.items():
            feed = {"model/Placeholder:0": batch, "model/Placeholder_2:0": False}
            values = session.run([f"{output}:0" for output in outputs], feed)
            found |= {f"{clip}/{name}/probabilities": values[0], f"{clip}/{name}/features": values[1]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("recordings", type=Path, nargs="*")
    parser.add_argument("--fixture", action="store_true")
    options = parser.parse_args()
    audio = {"seeded": seeded_clip()} if options.fixture else clips(options.recordings)
    spectrograms = {name: spectrogram(clip) for name, clip in audio.items()}
    patches = {
        name: np.stack([frames[at : at + FRAMES] for at in range(0, len(frames) - FRAMES + 1, FRAMES)])
        for name, frames in spectrograms.items()
    }
    found = {f"{name}/mel": frames[:: EVERY if options.fixture else 1] for name, frames in spectrograms.items()}
    for network in ("MTT_musicnn", "MSD_musicnn"):
        found |= predict(options.weights, network, patches)
    if not options.fixture:
        found |= {f"{name}/audio": clip for name, clip in audio.items()}
    np.savez(options.out, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
