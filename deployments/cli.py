"""The command `musicgen-flows`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from deployments.api import check_settings, explain_lost
from deployments.checks.finding import INSTALL, Attempt
from deployments.command import Command
from deployments.console import discard_stdout, output, print_error
from deployments.environment import prepare, print_in_any_encoding, use_local_server
from deployments.options import BROKEN_PIPE, COMMAND_LINE, UsageError, choose_language, parse
from deployments.parameters import (
    DemoParameters,
    DoctorParameters,
    RunParameters,
    StudioParameters,
    UpParameters,
    VotesParameters,
)
from flows.parameters import (
    CaptionParameters,
    EstimateParameters,
    EvaluateParameters,
    ExportParameters,
    FinetuneParameters,
    GenerateParameters,
    TokenizeParameters,
    TrainParameters,
)
from musicgen_core.errors import ConfigError, MusicgenError, advice_on, reason_of, translated_error
from musicgen_core.escaping import print_logs_safely, printable
from musicgen_core.language import message, say, translated
from tasks.interruption import interruptible
from tasks.next_steps import PROGRAM, in_shell

_OF_TRAINING = {"num_epochs": "--epochs", "sample_prompts": "--sample-prompt", "optimizer_name": "--optimizer"}
COMMANDS = {
    "demo": Command(
        summary="Try everything with made-up music, on the CPU, in about three minutes",
        function="deployments.demo:demo",
        form=DemoParameters,
        example="uv run musicgen-flows demo --workdir /tmp/demo",
        continues=True,
    ),
    "finetune": Command(
        summary="Learn from your music and make new music, all in a row",
        function="deployments.commands:finetune",
        form=FinetuneParameters,
        example="uv run musicgen-flows finetune archives/ --tokens tokens/ --run-dir runs/first \\\n"
        '    --output music/ --epochs 3 --prompt "heavy metal with fast drums"',
        arguments=("archives",),
        required=("tokens", "run_dir", "output"),
        short={"prompts": "--prompt", **_OF_TRAINING},
        with_config=True,
        continues=True,
    ),
    "caption": Command(
        summary="Describe each clip by its audio, in a metadata.jsonl to look through and correct",
        function="deployments.commands:caption",
        form=CaptionParameters,
        example="uv run musicgen-flows caption archives/ archives/metadata.jsonl",
        arguments=("archives", "metadata"),
        continues=True,
    ),
    "tokenize": Command(
        summary="Turn your music into tokens, the form in which the model reads it",
        function="deployments.commands:tokenize",
        form=TokenizeParameters,
        example="uv run musicgen-flows tokenize archives/ tokens/ --caption-prefix mystyle",
        arguments=("archives", "tokens"),
        continues=True,
    ),
    "train": Command(
        summary="Teach the model your music: tokens to an adapter (LoRA)",
        function="deployments.commands:train",
        form=TrainParameters,
        example="uv run musicgen-flows train tokens/ runs/first --epochs 3 --lora-r 16",
        arguments=("tokens", "run_dir"),
        short=_OF_TRAINING,
        with_config=True,
        continues=True,
    ),
    "generate": Command(
        summary="Make music from words",
        function="deployments.commands:generate",
        form=GenerateParameters,
        example='uv run musicgen-flows generate music/ --adapter runs/first --prompt "calm piano"',
        arguments=("output",),
        short={"prompts": "--prompt", "formats": "--format", "sections": "--section"},
        continues=True,
    ),
    "studio": Command(
        summary="Make music on a web page, with the model in memory",
        function="deployments.studio.command:studio",
        form=StudioParameters,
        example="uv run musicgen-flows studio --adapter runs/first --output music/",
    ),
    "up": Command(
        summary="Work in the browser: Prefect server, workers and deployments here",
        function="deployments.up:up",
        form=UpParameters,
        example="uv run musicgen-flows up --archives /data/archives --runs /data/runs",
    ),
    "run": Command(
        summary="Run a deployment by its short name",
        function="deployments.run:run",
        form=RunParameters,
        example="uv run musicgen-flows run train-lora -p num_epochs=3 --watch",
        arguments=("deployment",),
        short={"param": "-p"},
    ),
    "estimate": Command(
        summary="How long it will take, and at what price",
        function="deployments.commands:estimate",
        form=EstimateParameters,
        example="uv run musicgen-flows estimate archives/ --hourly-price 2.50",
        arguments=("archives",),
    ),
    "evaluate": Command(
        summary="Is an adapter better than the base model? A report",
        function="deployments.commands:evaluate",
        form=EvaluateParameters,
        example='uv run musicgen-flows evaluate tokens/ --adapter runs/first \\\n    --prompt "calm piano"',
        arguments=("tokens",),
        required=("adapter",),
        short={"prompts": "--prompt"},
    ),
    "votes": Command(
        summary="Tally the votes of blind comparisons: share, interval, ties",
        function="deployments.votes:votes",
        form=VotesParameters,
        example="uv run musicgen-flows votes music/",
        arguments=("places",),
    ),
    "export": Command(
        summary="Share an adapter: for peft, audiocraft or transformers, with a model card",
        function="deployments.commands:export",
        form=ExportParameters,
        example="uv run musicgen-flows export runs/first shared/ --format peft",
        arguments=("adapter", "out"),
        repeated="adapter",
    ),
    "doctor": Command(
        summary="Check this machine, the server and your locations",
        function="deployments.doctor:doctor",
        form=DoctorParameters,
        example="uv run musicgen-flows doctor /mnt/drive/music --model facebook/musicgen-small",
        arguments=("places",),
    ),
}


def run() -> NoReturn:
    """End this process with `main`'s exit code.

    While a check of `doctor` hangs, the interpreter isn't finalized: native code in the check's thread may abort that.
    """
    code = main()
    if any(isinstance(thread, Attempt) for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 (done), 1 (failed, with one line on stderr), 2 (wrong usage), 130 (interrupted) or 141 (broken pipe).
    """
    print_in_any_encoding()
    try:
        code = _main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        return BROKEN_PIPE
    return code


def _main(arguments: Sequence[str] | None) -> int:
    line = given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        given = choose_language(given)
        _check_working_directory()
        prepare(quiet=not debug)
        print_logs_safely()
        _leave_backend_of_notebook()
        _stop_as_by_ctrl_c()
        parsed = parse(COMMANDS, given or ["--help"])
        if parsed is None:
            return 0 if given else 2
        command, parameters = parsed
        with interruptible(_again(line)):
            return _load(command)(parameters)
    except UsageError as error:
        for problem in error.problems:
            _print_error(translated(problem))
        called = f"{COMMAND_LINE} {given[0]}" if given and given[0] in COMMANDS else COMMAND_LINE
        print_error(say("usage: {command} --help shows what there is", command=called))
        return 2
    except SystemExit as error:  # from --install-completion, or from help whose reader is gone
        return int(error.code or 0)
    except KeyboardInterrupt:
        if output.is_broken:
            return BROKEN_PIPE
        _print_interrupted(_again(line))
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        _print_error(_one_line(error))
        return 1


def _print_error(problem: str) -> None:
    print_error(say("error: {problem}", problem=problem))


def _print_interrupted(again: str) -> None:
    """Print how to continue a command that was interrupted, which is no error."""
    if not again:
        print_error(say("Interrupted."))
        return
    print_error(say("Interrupted. What was finished is kept; this does the rest:"))
    print(printable(again), file=sys.stderr)


def _again(line: Sequence[str]) -> str:
    """Return the command that continues an interrupted one; an empty string if it would begin from scratch."""
    is_pushed = any(word.partition("=")[0] == "--push-to" for word in line)
    if not any(entry in COMMANDS and (COMMANDS[entry].continues or is_pushed) for entry in line[:1]):
        return ""
    return in_shell(PROGRAM, *_continuing(line))


def _continuing(line: Sequence[str]) -> list[str]:
    """Return the command line that continues an interrupted one, without `--resume never`, which would be refused."""
    for number, pair in enumerate(pairwise(line)):
        if pair == ("--resume", "never"):
            return [*line[:number], *line[number + 2 :]]
    return [word for word in line if word != "--resume=never"]


def _load(command: Command) -> Callable[[dict[str, Any]], int]:
    """Return a command's function. Its imports take seconds."""
    from deployments.activity import working  # not at module level, where it would delay the help

    with working(message("loading Prefect")):
        use_local_server()  # before Prefect is imported, which reads the environment once
        check_settings()
        module, _, name = command.function.partition(":")
        function: Callable[[dict[str, Any]], int] = getattr(importlib.import_module(module), name)
    return function


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(
            message("the working directory no longer exists"),
            message(
                "Go to one that does; in a notebook: %cd /content. Enter a folder that was created again by cd $PWD"
            ),
        ) from error


def _leave_backend_of_notebook() -> None:
    """Unset the notebook's Matplotlib backend, which every command started from a cell inherits.

    Jupyter and Colab export MPLBACKEND=module://matplotlib_inline.backend_inline. That module exists only in their
    environment; in this project's, `import matplotlib` itself would fail. Pictures are written to files, which needs
    no backend.
    """
    if os.environ.get("MPLBACKEND", "").startswith("module://"):
        del os.environ["MPLBACKEND"]


def _stop_as_by_ctrl_c() -> None:
    """Treat SIGTERM and SIGHUP as Ctrl-C: the work is saved, and a temporary server is stopped."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) != signal.SIG_IGN:  # nohup
            signal.signal(stop, _interrupt)


def _interrupt(*_: object) -> None:
    for stop in (signal.SIGTERM, signal.SIGHUP):  # a second signal would interrupt the saving
        signal.signal(stop, signal.SIG_IGN)
    raise KeyboardInterrupt


def _one_line(error: Exception) -> str:
    if isinstance(error, MusicgenError):
        return " ".join(translated_error(error).split())
    if advice := advice_on(error):
        return say("{found}. {next_step}", found=reason_of(error), next_step=advice)
    if isinstance(error, ModuleNotFoundError):
        return say("{found}. {next_step}", found=str(error), next_step=INSTALL)
    if lost := explain_lost(error):
        return translated_error(lost)
    return say(
        "{kind}: {text}. Unexpected error, probably a bug; --debug shows where it came from",
        kind=type(error).__name__,
        text=" ".join(str(error).split()) or type(error).__name__,
    )


if __name__ == "__main__":
    run()
