"""Longest silence in the output of each command, in a terminal and in a pipe.

    python -m bench.silence --workdir DIR [--only tokenize train …] [--pipe] [--model debug]

Every command is run as users run it, on synthesized music and a small model. In the emulated terminal of 80 columns a
redrawn bar or spinner counts as output; with --pipe, as under nohup, only lines count. Reports for each command the
total time, the first output and its time, and the longest time without a visible character, with the output before it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers import ROOT, free_port
from musicgen_core.demo_data import make_demo_archives

_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_ROWS, _COLUMNS = 24, 80


@dataclass
class OutputTiming:
    """Timing of a command's output.

    Attributes:
        code: exit code.
        seconds: total duration.
        first: seconds to the first visible character.
        longest: seconds of the longest silence, including those before the first and after the last character.
        before: last output before that silence.
    """

    code: int
    seconds: float
    first: float
    longest: float
    before: str


def listen(command: Sequence[str], environment: Mapping[str, str], is_pipe: bool, until: str = "") -> OutputTiming:
    """Run a command and record the timing of its output.

    Args:
        until: output after which it is interrupted, as by Ctrl-C.
    """
    reading, writing = os.pipe() if is_pipe else pty.openpty()
    if not is_pipe:
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    began = last = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing
    )
    os.close(writing)
    first = longest = 0.0
    said, before, everything = "", "", ""
    while True:
        ready, _, _ = select.select([reading], [], [], 1.0)
        try:
            data = os.read(reading, 65536) if ready else None
        except OSError:  # the terminal's other end is closed
            data = b""
        now = time.monotonic()
        visible = _CONTROL.sub(b"", data or b"").decode(errors="replace").replace("\r", "\n").strip()
        if visible or data == b"":
            first = first or now - began
            if now - last > longest:
                longest, before = now - last, said
            last, said = now, visible.splitlines()[-1].strip() if visible else said
            everything = (everything + visible)[-10_000:]
        if data == b"":
            break
        if until and until in everything:
            process.send_signal(signal.SIGINT)
            until = ""
    os.close(reading)
    code = process.wait()
    if code:
        print(everything, file=sys.stderr)
    return OutputTiming(code=code, seconds=time.monotonic() - began, first=first, longest=longest, before=before)


def commands(folder: Path, model: str, port: int) -> dict[str, list[str]]:
    """Return the command lines by name, in an order in which each finds the results of the ones before."""
    archives, tokens, run_dir, music = (str(folder / name) for name in ("archives", "tokens", "runs/first", "music"))
    on = ["--model", model, "--device", "cpu"]
    quick = ["--batch-size", "2", "--gradient-accumulation-steps", "1", "--segment-seconds", "2", "--max-steps", "6"]
    short = ["--duration", "2"]
    parts = ["--tokens", f"{tokens}-2", "--run-dir", f"{run_dir}-2", "--output", music]
    watched = {"tokens": tokens, "run_dir": f"{run_dir}-3", "model": model, "device": "cpu", "segment_seconds": 2}
    param = [word for name, value in watched.items() for word in ("-p", f"{name}={value}")]
    return {
        "help": ["--help"],
        "doctor": ["doctor", *on],
        "estimate": ["estimate", archives, *on],
        "tokenize": ["tokenize", archives, tokens, *on],
        "train": ["train", tokens, run_dir, *on, *quick],
        "generate": ["generate", music, "--adapter", run_dir, "--prompt", "calm piano", *on, *short],
        "evaluate": ["evaluate", tokens, "--adapter", run_dir, *on, "--prompt", "calm piano", *short],
        "export": ["export", run_dir, f"{music}/peft", "--format", "peft", "--model", model],
        "finetune": ["finetune", archives, *parts, *on, *quick, *short],
        "up": ["up", "--port", str(port), "--files-port", str(free_port())],
        "run": ["run", "train-lora", "--watch", *param, "-p", "max_steps=6"],
        "weekly": ["run", "train-lora", "--weekly", "on"],
        "demo": ["demo", "--workdir", str(folder / "demo")],
    }


SERVER = ("run", "weekly")
"""Commands that need a running `up`"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--pipe", action="store_true")
    parser.add_argument("--model", default="debug")
    given = parser.parse_args()
    folder = given.workdir.resolve()
    if not (folder / "archives").exists():
        make_demo_archives(folder / "archives", archives=3, clips=8, seconds=4.0)
    port = free_port()
    lines = commands(folder, given.model, port)
    chosen = given.only or list(lines)
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), "WANDB_MODE": "offline", "COLUMNS": "80"}
    environment.pop("PREFECT_API_URL", None)
    program = [sys.executable, "-m", "deployments.cli"]
    print("| command | all of it, s | first said, s | longest silence, s | after |")
    print("| --- | ---: | ---: | ---: | --- |")
    up = None
    try:
        for name in chosen:
            if name in SERVER and up is None:
                up = _start_up([*program, *lines["up"]], environment, folder / "up.log")
                environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
            until = "Ctrl-C" if name == "up" else ""
            heard = listen([*program, *lines[name]], environment, given.pipe, until)
            failed = f" (exit {heard.code})" if heard.code else ""
            print(
                f"| `{name}`{failed} | {heard.seconds:.1f} | {heard.first:.1f} | {heard.longest:.1f} | "
                f"{heard.before[:60].replace('|', ' ') or 'its start'} |",
                flush=True,
            )
    finally:
        if up is not None:
            up.send_signal(signal.SIGINT)
            up.wait()


def _start_up(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    while log.read_text(errors="replace").count("is ready") < 2 and process.poll() is None:  # last line of workers
        time.sleep(0.5)
    return process


if __name__ == "__main__":
    main()
