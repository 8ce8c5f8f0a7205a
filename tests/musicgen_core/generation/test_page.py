from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.escaping import printable
from musicgen_core.generation.page import MUSIC, write_index
from tests.hostile import TEXTS, is_inert_terminal_text

ADAPTER = {"path": "gs://bucket/runs/jazz/best_lora.pt", "sha256": "ab" * 32, "epoch": 4, "global_step": 1200}


class Parsed(HTMLParser):
    """The page as a reader sees it: texts by element, tags with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[tuple[str, list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._texts.append((tag, []))
        if tag not in ("meta", "link", "img"):
            self._open.append(self._texts[-1][1])

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1].append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(parts) for name, parts in self._texts if name == tag]

    def all_of(self, tag: str, attribute: str) -> list[str | None]:
        return [attributes.get(attribute) for name, attributes in self.tags if name == tag]


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path) if request.param == "local" else bucket


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


def test_a_japanese_reader_gets_a_page_in_japanese_that_is_recognised(
    folder: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    common = {"prompt": "jazz", "seed": 3, "duration": 2.5, "model": "demo"}
    pieces = [("generated_000", common), ("generated_001", {**common, "adapter": ADAPTER, "variation": 1})]
    page = page_of(folder, pieces)
    assert page.texts("h1") == page.texts("title") == ["生成した音楽"] and page.all_of("html", "lang") == ["ja"]
    assert page.texts("p")[0] == "1 個のプロンプトから 2 曲"
    assert page.texts("h3") == ["ベースモデル", "アダプタあり、バリエーション 2"]
    assert page.texts("dt") == ["モデル", "アダプタ"]
    assert MUSIC.is_at(folder / "index.html")


def page_of(folder: Path | UPath, pieces: Sequence[tuple[str, Mapping[str, Any]]]) -> Parsed:
    target = write_index(folder, pieces)
    assert target == storage.as_path(folder) / "index.html"
    return Parsed(target.read_text(encoding="utf-8"))


def sidecar_of(prompt: str = "slow piano", seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "duration": 30.0, "model": "debug", "adapter": None, **more}


def touch(folder: UPath, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


# Foreign text


@settings(max_examples=80)
@given(prompt=st.text(min_size=1) | st.text(alphabet="<>&\"'{}%#/!- sciptSCRIPT=\n\t", min_size=1))
def test_any_prompt_is_shown_as_it_was_written_and_adds_no_tags(place: Path, prompt: str) -> None:
    plain = page_of(place, [("a", sidecar_of())])
    parsed = page_of(place, [("a", sidecar_of(prompt))])
    assert parsed.texts("h2") == [printable(prompt) if prompt.strip() else "(no prompt)"]
    assert parsed.tags == plain.tags


@given(text=st.text(alphabet="<>&\"'a/=#?% \u202e\u0627", min_size=1))
@settings(max_examples=30)
def test_no_other_text_of_a_sidecar_adds_tags(place: Path, text: str) -> None:
    def sidecar(word: str) -> dict[str, Any]:
        adapter, sections = {"path": word, "epoch": word}, [{"start": 1, "prompt": word}]
        own = {
            "negative_prompt": word,
            "sections": sections,
            "best_of": {"score": 1, "candidate": 0, "candidates": word},
        }
        return {"model": word, "adapter": adapter, "sampling": {word: word}, "seed": word, **own}

    assert page_of(place, [("a", sidecar(text))]).tags == page_of(place, [("a", sidecar("word"))]).tags


NAMES = ("start", "prompt", "score", "candidate", "candidates", "all_kept")
"""Of values within sidecars"""


@given(
    sidecar=st.dictionaries(
        st.sampled_from(
            [
                "prompt",
                "seed",
                "duration",
                "model",
                "adapter",
                "sampling",
                "variation",
                "continued_from",
                "more",
                "negative_prompt",
                "sections",
                "best_of",
            ]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda values: (
                st.lists(values, max_size=2)
                | st.dictionaries(st.text(max_size=5) | st.sampled_from(NAMES), values, max_size=3)
            ),
            max_leaves=4,
        ),
    )
)
@settings(max_examples=80)
def test_any_json_makes_a_page(place: Path, sidecar: dict[str, Any]) -> None:
    page_of(place, [("generated_000", sidecar), ("generated_001", {})])


# What is shown


def test_the_versions_of_a_prompt_stand_side_by_side(folder: UPath) -> None:
    touch(folder, *(f"{stem}.wav" for stem in "abcde"))
    parsed = page_of(
        folder,
        [
            ("a", sidecar_of("piano")),
            ("b", sidecar_of("piano", adapter=ADAPTER)),
            ("c", sidecar_of("drums")),
            ("d", sidecar_of("drums", adapter=ADAPTER)),
            ("e", sidecar_of("piano", seed=1)),
        ],
    )
    assert parsed.texts("h2") == ["piano", "drums", "piano"]
    assert parsed.texts("h3") == ["Base model", "With adapter", "Base model", "With adapter", "Base model"]
    assert parsed.all_of("audio", "src") == ["./a.wav", "./b.wav", "./c.wav", "./d.wav", "./e.wav"]
    assert [name for name in parsed.all_of("section", "class") if name] == ["prompt wide", "prompt wide", "prompt"]


def test_versions_of_a_prompt_are_grouped_across_runs(place: Path) -> None:
    parsed = page_of(place, [("a", sidecar_of("piano")), ("b", sidecar_of("drums")), ("c", sidecar_of("piano"))])
    assert parsed.texts("h2") == ["piano", "drums"]
    assert [text.split(" · ")[0] for text in parsed.texts("p")[1:]] == ["a", "c", "b"]


def test_variations_are_counted_where_there_are_several(place: Path) -> None:
    pieces = [(str(number), sidecar_of("piano", variation=number)) for number in range(3)]
    assert page_of(place, pieces).texts("h3") == [f"Base model, variation {number}" for number in (1, 2, 3)]
    assert page_of(place, pieces[:1]).texts("h3") == ["Base model"]


def test_several_adapters_have_different_labels(place: Path) -> None:
    later = {**ADAPTER, "epoch": 5, "global_step": 1500}
    parsed = page_of(place, [("a", sidecar_of(adapter=ADAPTER)), ("b", sidecar_of(adapter=later))])
    assert parsed.texts("h3") == ["best_lora.pt, epoch 4, step 1200", "best_lora.pt, epoch 5, step 1500"]


def test_strengths_stand_in_columns_and_variations_in_rows(place: Path) -> None:
    def piece(stem: str, prompt: str, strength: float, variation: int = 0) -> tuple[str, dict[str, Any]]:
        adapter = {**ADAPTER, "strength": strength} if strength else None
        return stem, sidecar_of(prompt, adapter=adapter, variation=variation)

    touch(storage.as_path(place), *(f"{stem}.wav" for stem in "abcdefg"))
    pieces = [piece("a", "piano", 1), piece("b", "piano", -0.5), piece("c", "piano", 0), piece("d", "drums", 1)]
    pieces += [piece("e", "drums", -0.5), piece("f", "drums", 1, 1), piece("g", "bass", 0)]
    parsed = page_of(place, pieces)
    # An empty cell stands for each sample that is missing.
    assert parsed.all_of("div", "class") == [
        *("grid", "strengths"),
        *("grid", "strengths", None, "strengths", None, None),
        "versions",
    ]
    assert parsed.texts("h3") == [
        *("Strength -0.5", "Base model", "Strength 1"),
        *("Strength -0.5, variation 1", "Strength 1, variation 1", "Strength 1, variation 2"),
        "Base model",
    ]
    assert parsed.all_of("audio", "src") == [f"./{stem}.wav" for stem in "bcaedfg"]
    for path in place.glob("*.wav"):
        path.unlink()


def test_a_mix_is_labelled_by_its_adapters_and_strengths(place: Path) -> None:
    funk = {**ADAPTER, "path": "runs/funk/lora_weights/best_lora.pt", "sha256": "cd", "strength": 0.4}
    mix = [{**ADAPTER, "strength": 0.7}, funk]
    parsed = page_of(place, [("a", sidecar_of(adapter=mix)), ("b", sidecar_of(adapter={**ADAPTER, "strength": 0.5}))])
    assert parsed.texts("h3")[0] == "jazz/best_lora.pt 0.7 + funk/best_lora.pt 0.4"
    assert parsed.texts("h3")[1] == "best_lora.pt, epoch 4, step 1200, strength 0.5"


def test_the_head_shows_common_settings_and_each_sample_its_own(place: Path) -> None:
    sampling = {"duration": 30.0, "seed": 0, "greedy": False, "top_k": 250, "top_p": 0.0, "guidance": None}
    first = sidecar_of(sampling={**sampling, "temperature": 1.0}, adapter=ADAPTER)
    files = {"continued_from": "/music/intro.wav", "melody": "/music/tune.flac"}
    second = sidecar_of("drums", 5, sampling={**sampling, "temperature": 0.5}, **files)
    parsed = page_of(place, [("a", first), ("b", {**second, "duration": 12.34})])
    assert dict(zip(parsed.texts("dt"), parsed.texts("dd"), strict=True)) == {
        "Model": "debug",
        "Adapter": "best_lora.pt, epoch 4, step 1200",
        "Sampling": "top-k 250",
    }
    assert parsed.texts("p") == [
        "2 samples from 2 prompts",
        "a · 30.0 s · seed 0 · temperature 1",
        "b · 12.3 s · seed 5 · continues intro.wav · follows tune.flac · temperature 0.5",
    ]


def test_the_sampling_is_in_japanese_for_a_japanese_reader(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    sampling = {"greedy": True, "top_k": 250, "temperature": 0.5, "guidance": 3.0, "overlap": 12.0}
    parsed = page_of(place, [("a", {**sidecar_of(sampling=sampling), "duration": 45.0})])
    assert "貪欲法 · top-k 250 · 温度 0.5 · ガイダンス 3 · オーバーラップ 12" in parsed.texts("dd")


def test_the_overlap_is_told_only_of_pieces_that_are_made_in_parts(place: Path) -> None:
    pieces = [("short", 4.0, None), ("long", 45.0, None), ("continued", 4.0, "/music/intro.wav")]
    parsed = page_of(
        place,
        [
            (name, {**sidecar_of(sampling={"overlap": 12.0}), "duration": seconds, "continued_from": before})
            for name, seconds, before in pieces
        ],
    )
    reported = [text for text in parsed.texts("p") if "overlap 12" in text]
    assert [text.partition(" ")[0] for text in reported] == ["long", "continued"]


# What is linked to


def test_only_files_that_exist_are_linked_to(folder: UPath) -> None:
    touch(folder, "a.wav", "a.json", "a.flac", "a.png", "ab.mp3", "b.wav", "b.mp3")
    parsed = page_of(folder, [("a", sidecar_of()), ("b", sidecar_of("drums")), ("c", sidecar_of("bass"))])
    assert parsed.all_of("a", "href") == ["./a.png", "./a.wav", "./a.flac", "./a.json", "./b.wav", "./b.mp3"]
    assert parsed.all_of("audio", "src") == ["./a.wav", "./b.wav"]
    assert parsed.all_of("img", "src") == ["./a.png"]


def test_a_file_written_after_the_last_page_is_linked_to_by_the_next(folder: UPath) -> None:
    assert page_of(folder, [("a", sidecar_of())]).all_of("audio", "src") == []
    touch(folder, "a.wav")
    assert page_of(folder, [("a", sidecar_of())]).all_of("audio", "src") == ["./a.wav"]


@pytest.mark.parametrize("stem", ["a b", "50%#1?", "http:x", "música&\"'<b>", "%41"])
def test_a_link_leads_to_its_file_whatever_its_name(tmp_path: Path, stem: str) -> None:
    touch(storage.as_path(tmp_path), f"{stem}.wav")
    (link,) = page_of(tmp_path, [(stem, sidecar_of())]).all_of("audio", "src")
    parts = urlsplit(str(link))
    assert not (parts.scheme or parts.netloc or parts.query or parts.fragment)
    assert (tmp_path / unquote(parts.path)).exists()


def test_the_page_is_self_contained_and_preloads_no_music(folder: UPath) -> None:
    touch(folder, "a.wav", "a.png", "a.json")
    parsed = page_of(folder, [("a", sidecar_of())])
    places = [value for _, attributes in parsed.tags for name, value in attributes.items() if name in ("src", "href")]
    assert places and all(str(place).startswith(("./a.", "data:,")) for place in places)
    assert not any("url(" in text or "@import" in text for text in parsed.texts("style"))
    assert parsed.all_of("audio", "preload") == ["none"]
    assert parsed.all_of("img", "loading") == ["lazy"]


def test_a_rendering_without_samples_has_a_page_too(folder: UPath) -> None:
    assert page_of(folder / "new", []).texts("p") == ["0 samples from 0 prompts"]


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_of_strangers_is_live_in_the_page(text: str, tmp_path: Path) -> None:
    adapter = {"path": f"/a/{text}", "epoch": text, "global_step": 1}
    sidecar = {"prompt": text, "model": text, "adapter": adapter, "seed": text, "sampling": {"top_k": text}}
    sidecar |= {"negative_prompt": text, "sections": [{"start": 1, "prompt": text}]}
    page = write_index(tmp_path, [("generated_000", sidecar)]).read_text()
    parsed = Parsed(page)
    assert {tag for tag, _ in parsed.tags} == {tag for tag, _ in Parsed(page_of_nothing(tmp_path)).tags} | PIECE_TAGS
    assert len(parsed.texts("script")) == 1 and is_inert_terminal_text(page)


PIECE_TAGS = {"dl", "dt", "dd", "section", "h2", "div", "article", "h3", "ul"}


def page_of_nothing(folder: Path) -> str:
    return write_index(folder, []).read_text()


def test_the_policy_allows_the_pages_own_script_and_style_alone(tmp_path: Path) -> None:
    parsed = Parsed(page_of_nothing(tmp_path))
    (policy,) = [found for found in parsed.all_of("meta", "content") if found and "default-src" in found]
    sources = dict(part.split(" ", 1) for part in policy.split("; "))
    assert sources["default-src"] == "'none'" and "http" not in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.texts(tag)[0].encode()).digest()).decode()
        assert sources[f"{tag}-src"] == f"'sha256-{digest}'"
