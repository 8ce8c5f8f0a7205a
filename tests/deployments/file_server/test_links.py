"""Links of runs to files that the file server serves."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.variables import Variable

from bench.servers import free_port
from deployments.file_server import Application, Folders, serving
from deployments.run import WAVS, _outcome
from musicgen_core.escaping import markdown_link
from tasks.artifacts import Artifacts
from tasks.served import VARIABLE, FileServer, file_link, is_served, links_in
from tests.deployments.file_server.sites import ask


def test_a_symlinked_folder_is_served_as_its_target(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree / "output")
    server = FileServer("http://here", "http://here", "box", {"output": str((tmp_path / "link").resolve())})
    assert server.url_of(tmp_path / "link" / "index.html") == "http://here/output/index.html"


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12))
def test_links_are_made_only_to_files_that_are_served(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    server = FileServer("http://here", "http://here", "box", {"runs": str(folder)})
    folders = Folders()
    folders.served = server.folders
    for ending in (".wav", ".json", ".yaml"):
        file = folder / f"{name}{ending}"
        file.write_bytes(b"x")
        url = server.url_of(file)
        path = unquote(url.removeprefix("http://here")) if url else f"/runs/{file.name}"
        assert ask(Application(folders, None), path)[0] == (200 if url else 404)
        assert (url is not None) == (ending != ".yaml" and not name.startswith("."))
        if url:
            assert links_in(markdown_link(str(file), url)) == [url]


def test_files_elsewhere_have_no_link(tree: Path) -> None:
    server = FileServer("http://here", "http://here", "box", {"runs": str(tree / "runs")})
    for location in (tree / "output" / "index.html", tree / "secret.wav", "gs://bucket/a.wav", tree / "output", tree):
        assert server.url_of(location) is None
    assert server.url_of(tree / "runs" / "first") == "http://here/runs/first/"
    assert server.url_of(tree / "runs") == "http://here/runs/"
    assert not is_served(tree / "secret.wav", tree / "runs")


@flow(name="links")
def links(*files: str) -> list[str]:
    return [file_link(file) for file in files]


@pytest.mark.usefixtures("prefect_server")
def test_runs_link_files_while_the_server_of_up_serves_them(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    local, page = f"http://127.0.0.1:{port}", str(tree / "output" / "index.html")
    hidden = str(tree / "secret.wav")
    places = {f"musicgen_{name}": str(tree / name) for name in ("archives", "tokens", "runs")}
    with serving("127.0.0.1", port, "http://box:4201", local) as server:
        for elsewhere in ("gs://bucket/music", "what://is/this", "music"):
            server.serve({**places, "musicgen_output": elsewhere})
            assert links(page) == [f"`{page}`"]
        server.serve({**places, "musicgen_output": str(tree / "output")})
        assert links(page, hidden) == [markdown_link(page, "http://box:4201/output/index.html"), f"`{hidden}`"]
        assert httpx.get(f"{local}/output/index.html").status_code == 200
        assert file_link(page) == f"`{page}`"  # outside of runs
        stored = Variable.get(VARIABLE)
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "another machine")
            assert links(page) == [f"`{page}`"]
    assert Variable.get(VARIABLE) is None
    Variable.set(VARIABLE, stored)  # as it stays where `up` is killed
    try:
        assert links(page) == [f"`{page}`"]
    finally:
        Variable.unset(VARIABLE)


@flow(name="summarized")
def summarized(text: str) -> None:
    artifacts = Artifacts()
    artifacts.markdown("summary", lambda: text, "What came of it")
    artifacts.close(120)


@pytest.mark.usefixtures("prefect_server")
def test_a_watched_run_ends_with_its_summary_and_browser_links() -> None:
    wavs = [f"http://127.0.0.1:4300/output/generated_{number:03d}.wav" for number in range(WAVS + 2)]
    report = "http://127.0.0.1:4300/runs/" + "long/" * 30 + "report.html"
    text = "\n\n".join(markdown_link(f"/data/{number}", url) for number, url in enumerate([*wavs, report]))
    state: Any = summarized(text, return_state=True)
    with get_client(sync_client=True) as client:
        summary, *links = _outcome(client, state.state_details.flow_run_id, state).made
    assert "/artifacts/artifact/" in summary.place
    assert [link.place for link in links] == [report, *wavs[:WAVS]]
