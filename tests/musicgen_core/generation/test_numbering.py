"""Rendering into a folder with earlier music replaces only earlier renderings of the same sample."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import Cancelled, ConfigError
from musicgen_core.generation.numbering import Numbering, identity
from musicgen_core.generation.render import render
from musicgen_core.generation.request import Rendered

PROMPTS = ["one", "two", "three"]


def names(pieces: list[Rendered]) -> list[str]:
    return [Path(piece.wav).stem for piece in pieces]


def on_page(folder: Path) -> list[str]:
    return re.findall(r'<audio[^>]* src="./(\w+).wav"', (folder / "index.html").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.html"}


def test_other_music_is_numbered_on_and_all_of_it_is_on_the_page(request_for: Any, tmp_path: Path) -> None:
    render(request_for(prompts=PROMPTS[:2]))
    before = contents(tmp_path / "out")
    assert names(render(request_for(prompts=PROMPTS[2:]))) == ["generated_002"]
    assert names(render(request_for(prompts=PROMPTS[:1], settings={"seed": 5}))) == ["generated_003"]
    assert contents(tmp_path / "out").items() >= before.items()
    assert on_page(tmp_path / "out") == [f"generated_00{number}" for number in range(4)]


def test_the_same_rendering_again_keeps_its_numbers(request_for: Any, tmp_path: Path, adapter: Path) -> None:
    render(request_for(prompts=["earlier"]))
    request = request_for(prompts=PROMPTS[:2], adapter=str(adapter), compare=True, variations=2)
    first, before = names(render(request)), contents(tmp_path / "out")
    assert names(render(request)) == first == [f"generated_00{number}" for number in range(1, 9)]
    assert contents(tmp_path / "out").keys() == before.keys()
    assert len(on_page(tmp_path / "out")) == 9


def test_a_rendering_that_was_interrupted_fills_its_gaps(request_for: Any, tmp_path: Path) -> None:
    made: list[Rendered] = []
    with pytest.raises(Cancelled):
        render(request_for(prompts=PROMPTS), on_piece=made.append, cancelled=lambda: bool(made))
    assert 0 < len(made) < 3
    assert names(render(request_for(prompts=PROMPTS))) == [f"generated_00{number}" for number in range(3)]
    assert on_page(tmp_path / "out") == [f"generated_00{number}" for number in range(3)]


@pytest.mark.parametrize("name", ["generated_000.wav", "generated_000.json", "generated_000.txt"])
def test_a_file_of_somebody_else_keeps_its_name(request_for: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"mine": true}')
    assert names(render(request_for(prompts=PROMPTS[:1]))) == ["generated_001"]
    assert (tmp_path / "out" / name).read_text() == '{"mine": true}'


@pytest.mark.parametrize("place", ["out", "copy"])
def test_a_foreign_page_is_refused_before_anything_is_rendered(request_for: Any, tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "index.html").write_text("<title>My homepage</title>")
    with pytest.raises(ConfigError, match=r"index\.html is not a page of generated music"):
        render(request_for(prompts=PROMPTS[:1], copy_to=str(tmp_path / "copy")))
    assert [path.name for path in (tmp_path / place).iterdir()] == ["index.html"]


def test_a_number_is_free_in_the_copys_folder_too(request_for: Any, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "generated_000.wav").write_text("mine")
    assert names(render(request_for(prompts=PROMPTS[:1], copy_to=str(tmp_path / "copy")))) == ["generated_001"]
    assert (tmp_path / "copy" / "generated_000.wav").read_text() == "mine"
    assert on_page(tmp_path / "copy") == ["generated_001"]


def sidecar_of(**changed: Any) -> dict[str, Any]:
    adapter = {"path": "/a/best_lora.pt", "sha256": "ab", "epoch": 1}
    plain = {"prompt": "x", "seed": 1, "variation": 0, "continued_from_sha256": None, "duration": 1.0, "stream": 3}
    return {**plain, "model": "large@sha256:1", "adapter": adapter, "sampling": {"top_k": 250}, **changed}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "y"),
        ("seed", 2),
        ("variation", 1),
        ("continued_from_sha256", "cd"),
        ("melody_sha256", "cd"),
        ("melody_separator", "sha256:ef"),
        ("duration", 2.0),
        ("model", "large@sha256:2"),
        ("adapter", None),
        ("adapter", {"path": "/a/best_lora.pt", "sha256": "ab", "epoch": 1, "strength": 0.5}),
        ("adapter", [{"sha256": "ab", "strength": 1}, {"sha256": "cd", "strength": 1}]),
        ("sampling", {"top_k": 100}),
        ("weight_bits", 8),
        ("cache_bits", 8),
    ],
)
def test_values_that_change_the_sound_change_the_identity(field: str, value: Any) -> None:
    assert identity(sidecar_of()) != identity(sidecar_of(**{field: value}))


def test_device_and_versions_do_not_change_the_identity() -> None:
    adapter = {"path": "gs://b/best_lora.pt", "sha256": "ab", "epoch": 1, "strength": 1.0}  # earlier files have none
    moved = sidecar_of(adapter=adapter, device="cuda")
    assert identity(json.loads(json.dumps(moved))) == identity(sidecar_of(model="/models/large@sha256:1"))


def test_numbers_continue_in_a_bucket(bucket: UPath) -> None:
    for number in (0, 7):
        storage.write_text(bucket / f"generated_{number:03d}.json", json.dumps(sidecar_of(seed=number)))
    numbering = Numbering(bucket)
    assert numbering.take(0, sidecar_of(seed=9)) == 8
    assert numbering.take(1, sidecar_of(seed=7)) == 7
    assert list(numbering.sidecars(0)) == [0, 7]


def test_sidecars_that_changed_are_read_again_and_deleted_ones_forgotten(tmp_path: Path) -> None:
    folder = storage.as_path(tmp_path)
    for number in (0, 1, 2):
        storage.write_text(folder / f"generated_{number:03d}.json", json.dumps(sidecar_of(seed=number)))
    numbering = Numbering(folder)
    before = numbering.sidecars(0)
    assert numbering.sidecars(0)[2] is before[2]  # not read again
    storage.write_text(folder / "generated_000.json", json.dumps(sidecar_of(seed=9)))
    (folder / "generated_001.json").unlink()
    after = numbering.sidecars(0)
    assert {number: found["seed"] for number, found in sorted(after.items())} == {0: 9, 2: 2}
    storage.write_text(folder / "generated_000.json", "{")
    assert numbering.sidecars(0).keys() == {2} and before.keys() == {0, 1, 2}


def test_deleted_sidecars_of_a_bucket_are_forgotten(bucket: UPath) -> None:
    for number in (0, 1):
        storage.write_text(bucket / f"generated_{number:03d}.json", json.dumps(sidecar_of(seed=number)))
    numbering = Numbering(bucket)
    (bucket / "generated_000.json").unlink()
    assert numbering.sidecars(0).keys() == {1}


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> UPath:
    listed = MemoryFileSystem.ls

    def ls(*given: Any, **named: Any) -> Any:
        while True:
            try:
                return listed(*given, **named)
            except KeyError:  # of a file that another thread has deleted meanwhile: an object store's lists are whole
                continue

    written, lock = MemoryFileSystem.pipe_file, threading.Lock()

    def pipe_file(*given: Any, **named: Any) -> None:
        with lock:  # an object store creates a file only once, whoever else does so at the same time
            written(*given, **named)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    return storage.as_path(tmp_path) if request.param == "local" else bucket


def write(numbering: Numbering, folder: UPath, index: int, sidecar: dict[str, Any]) -> int:
    """Write a piece as a rendering does."""
    number = numbering.take(index, sidecar)
    storage.write_text(folder / f"generated_{number:03d}.json", json.dumps(sidecar))
    numbering.release(number)
    return number


def test_runs_into_one_folder_at_once_share_no_number(folder: UPath) -> None:
    runs = [Numbering(folder) for _ in range(8)]
    begin = threading.Barrier(len(runs))

    def render_all(seed: int) -> list[int]:
        begin.wait()
        return [write(runs[seed], folder, index, sidecar_of(seed=seed, variation=index)) for index in range(5)]

    with ThreadPoolExecutor(len(runs)) as threads:
        numbers = [number for given in threads.map(render_all, range(len(runs))) for number in given]
    assert sorted(numbers) == list(range(40))
    assert runs[0].sidecars(0).keys() == set(numbers)
    assert not [path for path in folder.iterdir() if path.suffix == ".claim"]


def test_a_claim_holds_in_the_copys_folder_too(folder: UPath, tmp_path: Path) -> None:
    copy = storage.as_path(tmp_path / "copy")
    one, other = Numbering(folder / "out", copy), Numbering(folder / "else", copy)
    assert one.take(0, sidecar_of(seed=1)) == 0
    assert other.take(0, sidecar_of(seed=2)) == 1
    assert not (folder / "else" / "generated_000.claim").exists()


def test_the_number_of_a_killed_run_is_its_own_when_run_again(folder: UPath) -> None:
    assert Numbering(folder).take(0, sidecar_of(seed=1)) == 0
    storage.write_text(folder / "generated_000.wav", "half of its files")
    assert Numbering(folder).take(0, sidecar_of(seed=2)) == 1
    assert Numbering(folder).take(0, sidecar_of(seed=1)) == 0


def test_music_of_a_run_at_the_same_time_is_on_the_page(request_for: Any, tmp_path: Path) -> None:
    def render_another(_: Rendered) -> None:
        if len(on_page(tmp_path / "out")) == 1:
            render(request_for(prompts=PROMPTS[2:]))

    assert names(render(request_for(prompts=PROMPTS[:2]), on_piece=render_another)) == [
        "generated_000",
        "generated_002",
    ]
    assert on_page(tmp_path / "out") == [f"generated_00{number}" for number in range(3)]


def test_two_variations_of_a_seed_have_different_labels() -> None:
    pieces = [
        Rendered("/m/a.wav", "x", 0, variation, 1.0, adapter) for variation in (0, 1) for adapter in (False, True)
    ]
    assert len({piece.voice for piece in pieces}) == 4
