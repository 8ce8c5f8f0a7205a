"""`index.html` plays all samples of a folder, of rendered music or of a training run, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from upath import UPath

from musicgen_core import storage
from musicgen_core.escaping import html_page
from musicgen_core.language import Message, message, say, translated
from musicgen_core.run_layout import ADAPTERS, epoch_adapter
from musicgen_core.wording import counted

PAGE = "index.html"
"""Name of the page in a folder of music, or of a run's samples"""
Sidecar = Mapping[str, Any]
PICTURE_SIZE = (720, 320)  # pixels of a spectrogram, which can still be read at half the size
ONE_PART_SECONDS = 30
"""Up to this length a piece is made without overlapping parts"""
_SAMPLING = {
    "overlap": message("overlap"),
    "greedy": message("greedy"),
    "temperature": message("temperature"),
    "guidance": message("guidance"),
}
"""Names of sampling settings that each language has its own word for"""
_HEAD_CHARACTERS = 2000


@dataclass(frozen=True)
class OwnPage:
    """A kind of HTML page that this project writes, recognised in any language and version; others are never replaced.

    Attributes:
        generator: the content of its `<meta name="generator">`.
        title: English title, which identifies pages of earlier versions, as these have no generator.
    """

    generator: str
    title: Message

    def is_at(self, path: UPath) -> bool:
        """Return whether a file is a page of this kind.

        Raises:
            OSError: the file can't be read.
        """
        try:
            head = storage.read_text(path)[:_HEAD_CHARACTERS]
        except ValueError:
            return False
        return f'<meta name="generator" content="{self.generator}">' in head or f"<title>{self.title}</title>" in head


MUSIC = OwnPage("musicgen-flows: generated music", message("Generated music"))
SAMPLES = OwnPage("musicgen-flows: samples of a training", message("Samples of every epoch"))


@dataclass(frozen=True)
class _Version:
    """One way in which a prompt was rendered."""

    stem: str
    label: str
    facts: list[str]
    links: dict[str, str]
    """Relative URLs of its existing files, by ending."""


@dataclass(frozen=True)
class _PromptRow:
    """A prompt and everything rendered from it with one seed."""

    text: str
    versions: list[_Version]


def write_index(out: storage.Location | UPath, pieces: Sequence[tuple[str, Sidecar]]) -> UPath:
    """Write `OUT/index.html`, which plays the samples beside it, one row per prompt, and return its path.

    Args:
        out: the folder.
        pieces: stems and sidecars of the samples in their order; values that a sidecar lacks aren't shown.
    """
    folder = storage.as_path(out)
    files = file_names(folder)
    common = _common([_sampling(sidecar) for _, sidecar in pieces])
    adapters = list(dict.fromkeys(_adapter(sidecar["adapter"]) for _, sidecar in pieces if sidecar.get("adapter")))
    models = list(dict.fromkeys(str(sidecar["model"]) for _, sidecar in pieces if sidecar.get("model")))
    facts = {say("Model"): models, say("Adapter"): adapters, say("Sampling"): _words(common)}
    shown = {name: values for name, values in facts.items() if values}
    prompts = _group(pieces, common, files, many_adapters=len(adapters) > 1)
    storage.write_text(folder / PAGE, _page(MUSIC, prompts, shown))
    return folder / PAGE


def file_names(folder: UPath) -> set[str]:
    """Return the names of the files in a folder that need not exist."""
    if not storage.is_local(folder):
        folder.fs.invalidate_cache(folder.path)  # another process may have written beside an older listing
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def write_samples_index(folder: UPath, prompts: Sequence[str], files: Mapping[int, Sequence[tuple[int, str]]]) -> None:
    """Write `samples/index.html` of a run directory, with one row per prompt for its samples of all epochs.

    Args:
        folder: the folder of the page.
        prompts: the prompts' texts.
        files: by epoch, 0 for the base model, the prompts' numbers and the names of their wavs in the folder.
    """
    of_prompts: list[list[_Version]] = [[] for _ in prompts]
    for epoch, wavs in sorted(files.items()):
        label = say("After epoch {epoch}", epoch=epoch) if epoch else say("Base model")
        adapter = [f"{ADAPTERS}/{epoch_adapter(epoch)}.pt"] if epoch else []
        for number, name in wavs:
            stem = name.removesuffix(".wav")
            of_prompts[number].append(_Version(stem, label, adapter, _links(stem, {name})))
    rows = [_PromptRow(text, versions) for text, versions in zip(prompts, of_prompts, strict=True) if versions]
    storage.write_text(folder / PAGE, _page(SAMPLES, rows, {}))


def _page(kind: OwnPage, prompts: Sequence[_PromptRow], facts: Mapping[str, Sequence[str]]) -> str:
    return html_page(
        "musicgen_core.generation",
        "index.html.j2",
        generator=kind.generator,
        title=translated(kind.title),
        prompts=prompts,
        pieces=translated(counted(sum(len(prompt.versions) for prompt in prompts), "sample")),
        texts=translated(counted(len(prompts), "prompt")),
        facts=facts,
        picture=PICTURE_SIZE,
    )


def _group(
    pieces: Sequence[tuple[str, Sidecar]], common: Mapping[str, Any], files: set[str], many_adapters: bool
) -> list[_PromptRow]:
    """Return a row for each prompt and seed, in the order of their first samples."""
    groups: dict[tuple[str, str], list[tuple[str, Sidecar]]] = {}
    for stem, sidecar in pieces:
        key = (str(sidecar.get("prompt") or ""), str(sidecar.get("seed")))
        groups.setdefault(key, []).append((stem, sidecar))
    prompts = []
    for (text, _), members in groups.items():
        varied = len({str(sidecar.get("variation")) for _, sidecar in members}) > 1
        versions = [
            _Version(stem, _label(sidecar, varied, many_adapters), _facts(sidecar, common), _links(stem, files))
            for stem, sidecar in members
        ]
        prompts.append(_PromptRow(text, versions))
    return prompts


def _links(stem: str, files: set[str]) -> dict[str, str]:
    names = {ending: f"{stem}.{ending}" for ending in ("wav", "flac", "mp3", "png", "json")}
    return {ending: f"./{quote(name)}" for ending, name in names.items() if name in files}


def _label(sidecar: Sidecar, varied: bool, many_adapters: bool) -> str:
    adapter, variation = sidecar.get("adapter"), sidecar.get("variation")
    label = say("Base model")
    if adapter:
        label = _adapter(adapter) if many_adapters else say("With adapter")
    if not (varied and isinstance(variation, int)):
        return label
    return say("{voice}, variation {number}", voice=label, number=variation + 1)


def _facts(sidecar: Sidecar, common: Mapping[str, Any]) -> list[str]:
    """Return the facts shown for one sample: those that aren't the same for all."""
    duration, seed, variation = sidecar.get("duration"), sidecar.get("seed"), sidecar.get("variation")
    facts = [say("{seconds:.1f} s", seconds=duration)] if isinstance(duration, int | float) else []
    if seed is not None and isinstance(variation, int) and variation > 0:
        facts.append(say("seed {seed}, variation {number}", seed=seed, number=variation + 1))
    elif seed is not None:
        facts.append(say("seed {seed}", seed=seed))
    if before := sidecar.get("continued_from"):
        facts.append(say("continues {file}", file=_file_name(before)))
    own = {name: value for name, value in _sampling(sidecar).items() if name not in common}
    return facts + _words(own)


def _adapter(adapter: Any) -> str:
    if not isinstance(adapter, Mapping):
        return str(adapter)
    words = [_file_name(adapter.get("path", "?"))]
    if "epoch" in adapter:
        words.append(say("epoch {number}", number=adapter["epoch"]))
    if "global_step" in adapter:
        words.append(say("step {number}", number=adapter["global_step"]))
    return ", ".join(words)


def _sampling(sidecar: Sidecar) -> dict[str, Any]:
    settings, duration = sidecar.get("sampling"), sidecar.get("duration")
    settings = settings if isinstance(settings, Mapping) else {}
    elsewhere = {"duration", "seed"}  # beside each piece
    if isinstance(duration, int | float) and duration <= ONE_PART_SECONDS and not sidecar.get("continued_from"):
        elsewhere.add("overlap")  # a sample of one window overlaps with nothing
    return {name: value for name, value in settings.items() if name not in elsewhere and value is not None}


def _common(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that are the same for all samples."""
    first = settings[0] if settings else {}
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in settings)}


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as texts, without those that are off."""
    words = []
    for name, value in settings.items():
        shown = translated(_SAMPLING.get(name, name.replace("_", "-")))
        if value is True:
            words.append(shown)
        elif value is not False and (name, value) != ("top_p", 0):
            words.append(f"{shown} {value:g}" if isinstance(value, float) else f"{shown} {value}")
    return words


def _file_name(path: Any) -> str:
    return PurePosixPath(str(path)).name
