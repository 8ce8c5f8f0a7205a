from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import Captions, load_captions
from musicgen_core.data.match_report import MatchReport, match_report

FILE = storage.as_path("memory://matches/metadata.jsonl")


def captions_of(*lines: str, template: str | None = None) -> Captions:
    storage.write_text(FILE, "\n".join(lines))
    return load_captions(FILE, TokenizeSettings(caption_template=template))


def report_on(captions: Captions, members: Iterable[str], are_all: bool = True) -> MatchReport:
    """Match members of one archive."""
    return match_report(captions, (("archive", member) for member in members), are_all)


def entries(paths: Iterable[str], description: str = "") -> list[str]:
    return [f'{{"path": "{path}", "description": "{description or path}"}}' for path in paths]


def test_metadata_that_fit_leave_nothing_to_say() -> None:
    captions = captions_of(*entries(["a/x.wav", "b/y.wav", "c/z.flac"]))
    report = report_on(captions, iter(["a/x.wav", "y.wav", "elsewhere/z.wav"]))
    assert (report.clips, report.unmatched.count, report.missing.count) == (3, 0, 0)
    assert report.lines() == []


def test_everything_that_does_not_fit_is_counted_with_examples() -> None:
    lines = [
        '{"path": "a.wav", "genre": "dub"}',
        '{"path": "b.wav"}',
        "broken",
        '{"path": "a.wav"}',
        *entries(f"lost/{number}.wav" for number in range(7)),
        "[]",
    ]
    report = report_on(
        captions_of(*lines, template="{genre}"),
        ["a.wav", "b.wav", "new/o'clock.wav", *(f"new/{letter}.wav" for letter in "cdefghi")],
    )
    assert report.lines() == [
        "metadata.jsonl: 2 lines can't be used: 3, 12",
        "metadata.jsonl: 1 line not used, as the path stands further up: 4",
        "metadata.jsonl: 8 lines without all fields of caption_template: 2, 5, 6, 7, 8, 9, 10, 11",
        "metadata.jsonl: 7 of 9 entries without a clip: "
        "'lost/0.wav', 'lost/1.wav', 'lost/2.wav', 'lost/3.wav', 'lost/4.wav', …",
        "metadata.jsonl: 8 of 10 clips without an entry: \"new/o'clock.wav\", 'new/c.wav', 'new/d.wav', "
        "'new/e.wav', 'new/f.wav', …",
    ]
    assert (report.unmatched.count, report.unmatched.examples[0]) == (7, "lost/0.wav")


def test_values_of_a_wrong_type_are_named_with_their_line_and_what_is_expected() -> None:
    wrong = {
        "description": (3, "a text"),
        "tags": (3, "a list of texts"),
        "vocals": ({"a": 1}, "a list of texts"),
        "tempo": ("fast", "a number of beats per minute above 0 and below 1,000"),
        "bpm": (-1, "a number of beats per minute above 0 and below 1,000"),
        "tempo_steady": ("yes", "true or false"),
        "key": ({}, "a text"),
        "loudness": ("loud", "a number"),
        "silence": ("x", "a number from 0 to 1"),
        "clipping": (True, "a number from 0 to 1"),
        "speech": (90, "a number from 0 to 1"),
        "duration": ([30], "a number"),
        "group": (True, "a text"),
    }
    usable = (
        '"tempo": "120", "bpm": 1.2e2, "tags": "a, b", "silence": "0.5", "loudness": NaN, "group": 7, "genre": null'
    )
    lines = [
        f'{{"path": "good.wav", {usable}, "artist": 3}}',
        "",
        *(json.dumps({"path": "x.wav", name: value[0]}) for name, value in wrong.items()),
    ]
    captions = captions_of(*(line.replace("x.wav", f"{number}.wav") for number, line in enumerate(lines)))
    found = report_on(captions, [], are_all=False).lines()
    named = [
        f"metadata.jsonl: line {line} ({line - 1}.wav): {name} is {json.dumps(value)}, and should be {expected}"
        for line, (name, (value, expected)) in enumerate(wrong.items(), start=3)
    ]
    assert found == [*named[:10], "metadata.jsonl: 3 more values that can't be used"]


def test_numbers_beyond_the_tenth_are_not_listed() -> None:
    report = report_on(captions_of(*["x"] * 1_200, *entries(["a.wav"])), ["a.wav"])
    assert report.lines() == ["metadata.jsonl: 1,200 lines can't be used: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …"]


def test_entries_with_equal_name_and_description_all_match() -> None:
    captions = captions_of(*entries(["a/x.wav", "b/x.wav"], "same"))
    assert report_on(captions, ["c/x.wav"]).unmatched.count == 0
    assert report_on(captions, ["a/x.wav"]).unmatched.examples == ["b/x.wav"]


def test_an_ambiguous_name_matches_neither_way() -> None:
    report = report_on(captions_of(*entries(["a/x.wav", "b/x.wav"])), ["c/x.wav"])
    assert (report.unmatched.count, report.missing.examples) == (2, ["c/x.wav"])


paths = st.lists(
    st.builds(
        "{}{}.{}".format, st.sampled_from(["", "a/", "b/"]), st.sampled_from("xyz"), st.sampled_from(["wav", "mp3"])
    )
)


@settings(max_examples=150, deadline=None)
@given(paths.filter(bool), paths, st.sampled_from(["", "same"]))
def test_an_entry_matches_if_it_or_an_equal_one_is_used(known: list[str], clips: list[str], description: str) -> None:
    captions = captions_of(*entries(known, description))
    matched: set[str] = set()
    for clip in clips:
        for alike in (str, lambda path: PurePosixPath(path).name, lambda path: PurePosixPath(path).stem):
            equal = {path for path in known if alike(path) == alike(clip)}
            if len({captions.by_path[path].description for path in equal}) == 1:  # else none, or an ambiguous name
                matched |= equal
                break
    report = report_on(captions, iter(clips))
    assert report.unmatched.count == len(set(known) - matched)
    assert set(report.unmatched.examples) <= set(known) - matched
    assert report.clips == len(clips)
    assert report.missing.count == sum(captions.find(clip) is None for clip in clips)


def test_with_some_of_the_clips_only_those_are_judged() -> None:
    captions = captions_of(*entries(["x.wav", "y.wav"]))
    assert report_on(captions, ["x.wav"], are_all=False).lines() == []
    assert len(report_on(captions, ["x.wav", "z.wav"], are_all=False).lines()) == 1
