"""What stays and what is added when measurements are merged into a metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core.captioning.metadata import (
    ExistingMetadata,
    MeasuredArchive,
    MeasuredClip,
    Merged,
    check_writable,
    merge,
    write,
)
from musicgen_core.data.captions import load_captions
from musicgen_core.errors import MetadataError

FIELDS: dict[str, Any] = {
    "tags": ["piano"],
    "tempo": 70.0,
    "tempo_steady": True,
    "key": None,
    "loudness": -14.0,
    "silence": 0.0,
    "clipping": 0.0,
    "speech": 0.0,
    "confidence": {"tags": {"piano": 0.9}, "tempo": 0.8, "key": 0.05, "speech": 0.9},
}
MADE_BY = "musicgen-flows 1"


def archive(name: str, *paths: str, **beside: str) -> MeasuredArchive:
    return MeasuredArchive(name, [MeasuredClip(path, FIELDS, beside.get(Path(path).stem)) for path in paths], [])


def merged(metadata: UPath, *archives: MeasuredArchive, overwrite: bool = False) -> tuple[list[dict[str, Any]], Merged]:
    result = merge(ExistingMetadata(metadata), archives, MADE_BY, overwrite)
    write(metadata, result.lines)
    return [json.loads(line) for line in metadata.read_text(encoding="utf-8").splitlines()], result


@pytest.fixture
def metadata(tmp_path: Path) -> UPath:
    return UPath(tmp_path / "metadata.jsonl")


def test_every_clip_gets_a_line_in_the_order_of_the_archives(metadata: UPath) -> None:
    entries, result = merged(metadata, archive("a.zip", "x.wav", "y.wav"), archive("b.zip", "x.wav"))
    assert [(entry["archive"], entry["path"]) for entry in entries] == [
        ("a.zip", "x.wav"),
        ("a.zip", "y.wav"),
        ("b.zip", "x.wav"),
    ]
    assert all("piano" in entry["description"] and entry["captioned_by"] == MADE_BY for entry in entries)
    assert all(entry[name] == value for entry in entries for name, value in FIELDS.items())
    assert (result.new, result.kept, result.missing) == (3, 0, 0)


def test_lines_survive_a_second_run_byte_for_byte(metadata: UPath) -> None:
    archives = archive("a.zip", "x.wav", "y.wav"), archive("b.zip", "x.wav")
    merged(metadata, *archives)
    lines = metadata.read_text().splitlines()
    edited = lines[1].replace('"description": "', '"description":"my own ').replace('"tempo": 70.0', '"tempo": 7e1')
    assert edited != lines[1]
    metadata.write_text("\n".join([lines[0], edited, lines[2]]) + "\n")
    _, result = merged(metadata, *archives)
    assert metadata.read_text().splitlines() == [lines[0], edited, lines[2]]
    assert (result.new, result.kept) == (0, 3)


def test_a_users_own_descriptions_and_fields_are_kept_and_measurements_added(metadata: UPath) -> None:
    metadata.write_text('{"path": "x.wav", "description": "my piano", "key": "C major", "artist": "me"}\n')
    [entry], result = merged(metadata, archive("a.zip", "x.wav"))
    assert (entry["description"], entry["key"], entry["artist"]) == ("my piano", "C major", "me")
    assert entry["tempo"] == 70.0 and "captioned_by" not in entry
    assert (result.new, result.kept) == (0, 1)


def test_a_deleted_description_is_composed_from_the_corrected_fields(metadata: UPath) -> None:
    merged(metadata, archive("a.zip", "x.wav"))
    entry = json.loads(metadata.read_text())
    del entry["description"]
    metadata.write_text(json.dumps(entry | {"tags": ["harp"], "key": "D minor"}) + "\n")
    [again], result = merged(metadata, archive("a.zip", "x.wav"))
    assert "harp" in again["description"] and "D minor" in again["description"] and again["tags"] == ["harp"]
    assert result.new == 1


def test_overwriting_replaces_descriptions_and_measurements_but_nothing_else(metadata: UPath) -> None:
    metadata.write_text('{"path": "x.wav", "description": "my piano", "key": "C major", "artist": "me"}\n')
    [entry], result = merged(metadata, archive("a.zip", "x.wav"), overwrite=True)
    assert entry["description"] != "my piano" and entry["key"] is None and entry["artist"] == "me"
    assert entry["captioned_by"] == MADE_BY and (result.new, result.replaced, result.kept) == (0, 1, 0)


OWN_LABELS = FIELDS | {
    "tags": ["koto", "piano"],
    "instruments": ["koto", "piano"],
    "confidence": FIELDS["confidence"] | {"tags": {"koto": 0.9, "piano": 0.8}},
}
"""Fields of a tagger with a label that the vocabulary doesn't have"""


def test_overwriting_replaces_the_instruments_of_a_tagger_but_not_a_persons(metadata: UPath) -> None:
    by_tagger = MeasuredArchive("a.zip", [MeasuredClip("x.wav", OWN_LABELS)], [])
    [entry], _ = merged(metadata, by_tagger)
    assert entry["instruments"] == ["koto", "piano"] and "koto" in entry["description"]
    [entry], _ = merged(metadata, archive("a.zip", "x.wav"), overwrite=True)
    assert "instruments" not in entry and "koto" not in entry["description"] and "piano" in entry["description"]
    metadata.write_text(json.dumps(entry | {"instruments": ["harp"]}) + "\n")
    [entry], _ = merged(metadata, by_tagger, overwrite=True)
    assert entry["instruments"] == ["harp"] and "harp" in entry["description"]


def test_tags_that_are_there_are_not_mixed_with_those_of_another_tagger(metadata: UPath) -> None:
    merged(metadata, archive("a.zip", "x.wav"))
    entry = json.loads(metadata.read_text())
    del entry["description"]
    metadata.write_text(json.dumps(entry) + "\n")
    [again], _ = merged(metadata, MeasuredArchive("a.zip", [MeasuredClip("x.wav", OWN_LABELS)], []))
    assert again["tags"] == ["piano"] and "instruments" not in again


def test_a_description_is_not_lost_to_a_clip_of_which_nothing_is_known(metadata: UPath) -> None:
    metadata.write_text('{"path": "x.wav", "description": "my noise"}\n')
    unknown = FIELDS | {"tags": [], "tempo": None}
    [entry], _ = merged(metadata, MeasuredArchive("a.zip", [MeasuredClip("x.wav", unknown)], []), overwrite=True)
    assert entry["description"] == "my noise"


def test_a_clip_of_which_nothing_is_known_has_no_description_and_is_counted(metadata: UPath) -> None:
    unknown = FIELDS | {"tags": [], "tempo": None}
    [entry], result = merged(metadata, MeasuredArchive("a.zip", [MeasuredClip("x.wav", unknown)], []))
    assert "description" not in entry and "captioned_by" not in entry
    assert (result.new, result.kept, result.missing) == (0, 0, 1)


def test_a_text_beside_the_clip_counts_as_its_description(metadata: UPath) -> None:
    [entry], result = merged(metadata, archive("a.zip", "x.wav", x="from a text file"))
    assert entry["description"] == "from a text file" and "captioned_by" not in entry
    assert (result.new, result.kept) == (0, 1)


def test_lines_of_no_clip_are_kept_at_the_end(metadata: UPath) -> None:
    others = ['{"path": "gone.wav", "description": "gone"}', "not json", '{"archive": "c.zip", "path": "x.wav"}']
    metadata.write_text("\n".join([others[0], '{"path": "x.wav", "description": "mine"}', *others[1:]]))
    merge_result = merge(ExistingMetadata(metadata), [archive("a.zip", "x.wav")], MADE_BY, overwrite=False)
    assert [line.decode() for line in merge_result.lines[1:]] == others


def test_clips_of_one_name_in_several_archives_have_texts_of_their_own(metadata: UPath) -> None:
    merged(metadata, archive("a.zip", "x.wav"), archive("b.zip", "x.wav"))
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join([lines[0], lines[1].replace('"description": "', '"description": "b: ')]))
    captions = load_captions(metadata)
    texts = [captions.find("x.wav", stem) for stem in ("a", "b", "c")]
    assert texts[0] and texts[1] and f"b: {texts[0].description}"[:3] == str(texts[1].description)[:3]
    assert texts[2] is None


def test_an_archive_is_complete_once_all_of_its_clips_are_measured_and_described(metadata: UPath) -> None:
    merged(metadata, archive("a.zip", "x.wav", "y.wav"))
    existing = ExistingMetadata(metadata)
    assert existing.is_complete(archive("a.zip", "x.wav", "y.wav"))
    assert not existing.is_complete(archive("a.zip", "x.wav", "z.wav"))
    assert not existing.is_complete(archive("b.zip", "x.wav"))


def test_descriptions_alone_are_enough_where_measurements_do_not_matter(metadata: UPath) -> None:
    metadata.write_text('{"path": "x.wav", "description": "mine"}\n')
    existing = ExistingMetadata(metadata)
    whole = archive("a.zip", "x.wav", "y.wav", y="from a text file")
    assert existing.is_complete(whole, needs_measurements=False)
    assert not existing.is_complete(whole)
    assert not existing.is_complete(archive("a.zip", "x.wav", "y.wav"), needs_measurements=False)


def test_equal_descriptions_of_one_name_are_kept_for_other_clips_of_the_name(metadata: UPath) -> None:
    metadata.write_text("".join(f'{{"path": "{folder}/x.wav", "description": "mine"}}\n' for folder in "ab"))
    [entry, *_], result = merged(metadata, archive("a.zip", "c/x.wav"))
    assert entry["description"] == "mine" and "captioned_by" not in entry
    assert (result.new, result.kept) == (0, 1)


def test_a_line_that_several_clips_match_does_not_multiply(metadata: UPath) -> None:
    line = {"path": "x.wav", "description": "mine", **FIELDS}
    metadata.write_text(json.dumps(line) + "\n")
    archives = [archive("a.zip", "x.wav"), archive("b.zip", "x.wav")]
    counts = [len(merged(metadata, *archives)[0]) for _ in range(3)]
    assert counts == [2, 2, 2]
    assert {entry["description"] for entry in merged(metadata, *archives)[0]} == {"mine"}


def test_a_field_archive_of_another_meaning_is_kept(metadata: UPath) -> None:
    metadata.write_text('{"path": "x.wav", "archive": "BBC"}\n')
    [entry], _ = merged(metadata, archive("a.zip", "x.wav"))
    assert entry["archive"] == "BBC" and "piano" in entry["description"]
    metadata.write_text('{"path": "x.wav", "archive": "foo://b/a.zip", "description": "mine"}\n')
    [entry], _ = merged(metadata, archive("a.zip", "x.wav"))
    assert entry["description"] == "mine"


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "folder" / "x" / "metadata.jsonl"):
        if place.name != "folder":
            (tmp_path / "folder" / "x").write_text("a file where a folder belongs")
        with pytest.raises(MetadataError, match="can't be written to"):
            check_writable(UPath(place))
    check_writable(UPath(tmp_path / "metadata.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
