"""The command `musicgen-flows`."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from deployments.api import check_settings, explain_lost
from deployments.checks.finding import Attempt
from deployments.console import discard_stdout, output
from deployments.environment import prepare, print_in_any_encoding, use_local_server
from deployments.options import UsageError
from musicgen_core.errors import ConfigError, MusicgenError, reason_of
from musicgen_core.escaping import one_line, print_logs_safely, printable


@dataclass(frozen=True)
class Command:
    """A command: one line of help, and the function that takes its arguments, imported only when it is called."""

    summary: str
    module: str
    function: str


COMMANDS = {
    "demo": Command(
        "tokenize, train and generate on made-up music, on the CPU, in two minutes", "deployments.demo", "demo"
    ),
    "finetune": Command("archives to tokens to adapter to music, in a row", "deployments.commands", "finetune"),
    "tokenize": Command("archives of wavs to shards of codes", "deployments.commands", "tokenize"),
    "train": Command("shards of codes to a LoRA adapter", "deployments.commands", "train"),
    "generate": Command("prompts to wavs", "deployments.commands", "generate"),
    "up": Command("Prefect server, worker and deployments on this machine", "deployments.up", "up"),
    "run": Command("run a deployment by its short name", "deployments.run", "run"),
    "estimate": Command("how long tokenizing will take, and at what price", "deployments.estimate", "estimate"),
    "evaluate": Command("is an adapter better than the base model? A report", "deployments.commands", "evaluate"),
    "export": Command("an adapter for peft or audiocraft, with a model card", "deployments.export", "export"),
    "doctor": Command("check this machine, the server and your places", "deployments.doctor", "doctor"),
}


BROKEN_PIPE = 128 + signal.SIGPIPE
"""Exit code of Unix tools whose output nobody reads any more"""


def run() -> NoReturn:
    """End this process with `main`'s exit code.

    While a check of `doctor` hangs, end it without finalizing the interpreter, which native code in a thread may abort.
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
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    if not given or given[0] in ("-h", "--help"):
        print(_help())
        return 0 if given else 2
    name, *rest = given
    if name not in COMMANDS:
        print(f"error: there is no command {one_line(name)!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        _check_working_directory()
        prepare(quiet=not debug)
        print_logs_safely()
        _leave_backend_of_notebook()
        _stop_as_by_ctrl_c()
        use_local_server()  # before Prefect is imported: it reads the environment once
        check_settings()
        function: Callable[[Sequence[str]], int] = getattr(importlib.import_module(command.module), command.function)
        return function(rest)
    except UsageError as error:
        for problem in error.problems:
            print(f"error: {printable(problem)}", file=sys.stderr)
        print(f"usage: musicgen-flows {name} --help shows what there is", file=sys.stderr)
        return 2
    except SystemExit as error:  # argparse after --help
        return int(error.code or 0)
    except KeyboardInterrupt:
        if output.is_broken:
            return BROKEN_PIPE
        print("error: interrupted. What was finished is kept: run the same command again for the rest", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {printable(_one_line(error))}", file=sys.stderr)
        return 1


def _check_working_directory() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError(
            "the working directory no longer exists",
            "Go to one that does; in a notebook: %cd /content. Enter a folder that was created again by cd $PWD",
        ) from error


def _leave_backend_of_notebook() -> None:
    """Forget matplotlib's backend of a notebook, which every command that is started from a cell inherits.

    Jupyter and Colab export MPLBACKEND=module://matplotlib_inline.backend_inline. That module is of their environment;
    in this project's the mere `import matplotlib` would fail. Pictures are drawn to files here: no backend is needed.
    """
    if os.environ.get("MPLBACKEND", "").startswith("module://"):
        del os.environ["MPLBACKEND"]


def _stop_as_by_ctrl_c() -> None:
    """A service manager's stop, or the terminal that is closed: the work is saved and a temporary server stopped."""
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) != signal.SIG_IGN:  # nohup
            signal.signal(stop, _interrupt)


def _interrupt(*_: object) -> None:
    for stop in (signal.SIGTERM, signal.SIGHUP):  # a second one would interrupt the saving
        signal.signal(stop, signal.SIG_IGN)
    raise KeyboardInterrupt


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on that disk, or give a place on another"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Change its permissions, or give another place"),
    errno.EIO: "Check the disk",
}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MusicgenError):
        return text
    if isinstance(error, OSError) and error.filename is not None and error.errno in _ADVICE:
        return f"{reason_of(error)}. {_ADVICE[error.errno]}"
    if lost := explain_lost(error):
        return str(lost)
    return f"{type(error).__name__}: {text}. This is not a mistake that is known here; --debug shows where it came from"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    intro = "usage: musicgen-flows COMMAND …\n\nFine-tune MusicGen with LoRA and make music with it.\n"
    outro = "\nmusicgen-flows COMMAND --help shows a command's options; --debug shows tracebacks and all logs."
    return "\n".join([intro, *lines, outro])


if __name__ == "__main__":
    run()
