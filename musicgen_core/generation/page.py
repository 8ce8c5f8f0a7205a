"""`index.html` plays all samples of a folder, of rendered music or of a training run, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upath import UPath

from musicgen_core import storage
from musicgen_core.escaping import html_page
from musicgen_core.generation.page_rows import (
    PromptRow,
    Version,
    adapter_names,
    common_sampling,
    links,
    prompt_rows,
    words,
)
from musicgen_core.generation.player import PlayedSample, comparison, player_texts, voted_sample
from musicgen_core.generation.sidecars import Sidecar
from musicgen_core.language import Message, message, say, translated
from musicgen_core.run_layout import ADAPTERS, epoch_adapter
from musicgen_core.wording import counted

PAGE = "index.html"
"""Name of the page in a folder of music, or of a run's samples"""
PICTURE_SIZE = (720, 320)  # pixels of a spectrogram, which can still be read at half the size
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


def write_index(out: storage.Location | UPath, pieces: Sequence[tuple[str, Sidecar]]) -> UPath:
    """Write `OUT/index.html`, which plays the samples beside it, one row per prompt, and return its path.

    Args:
        out: the folder.
        pieces: stems and sidecars of the samples in their order; values that a sidecar lacks aren't shown.
    """
    folder = storage.as_path(out)
    files = file_names(folder)
    common = common_sampling(pieces)
    adapters = list(dict.fromkeys(name for _, sidecar in pieces for name in adapter_names(sidecar)))
    models = list(dict.fromkeys(str(sidecar["model"]) for _, sidecar in pieces if sidecar.get("model")))
    facts = {say("Model"): models, say("Adapter"): adapters, say("Sampling"): words(common)}
    shown = {name: values for name, values in facts.items() if values}
    prompts = prompt_rows(pieces, common, files)
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
    of_prompts: list[list[Version]] = [[] for _ in prompts]
    played: list[list[PlayedSample]] = [[] for _ in prompts]
    for epoch, wavs in sorted(files.items()):
        label = say("After epoch {epoch}", epoch=epoch) if epoch else say("Base model")
        adapter = [f"{ADAPTERS}/{epoch_adapter(epoch)}.pt"] if epoch else []
        for number, name in wavs:
            stem = name.removesuffix(".wav")
            version = Version(stem, label, adapter, links(stem, {name}))
            of_prompts[number].append(version)
            sample = voted_sample(name, {"adapter": {"path": adapter[0]} if adapter else None})
            played[number].append(PlayedSample(sample, label, version.links["wav"]))
    rows = []
    for text, versions, samples in zip(prompts, of_prompts, played, strict=True):
        if versions:
            found = comparison({"prompt": text}, samples)
            rows.append(PromptRow(text, [versions], comparisons=[found] if found else []))
    storage.write_text(folder / PAGE, _page(SAMPLES, rows, {}))


def _page(kind: OwnPage, prompts: Sequence[PromptRow], facts: Mapping[str, Sequence[str]]) -> str:
    return html_page(
        "musicgen_core.generation",
        "index.html.j2",
        generator=kind.generator,
        title=translated(kind.title),
        prompts=prompts,
        pieces=translated(counted(sum(prompt.count for prompt in prompts), "sample")),
        texts=translated(counted(len(prompts), "prompt")),
        facts=facts,
        picture=PICTURE_SIZE,
        player=player_texts(),
    )
