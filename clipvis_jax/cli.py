"""The command line, ``clipvis``: finds the command, and says in one line what went wrong."""

import os
import signal

_ctrl_c = signal.getsignal(signal.SIGINT)
if _ctrl_c is signal.default_int_handler:
    # Until the command runs nothing can be lost, and a traceback of an import tells nobody anything.
    try:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    except ValueError:  # not the main thread
        _ctrl_c = None

import importlib
import logging
import sys
import traceback
import warnings
from _thread import interrupt_main
from collections.abc import Sequence
from threading import Timer
from typing import Any, NamedTuple

from clipvis_jax.commands.interrupt import GOES_ON, STOPPED, remembering_ctrl_c, stopping_at_once
from clipvis_jax.distributed import end_all
from clipvis_jax.errors import InputError, first_line, printable, without_controls
from clipvis_jax.io.terminal import print_lines, safe_printing
from clipvis_jax.version import __version__


class Command(NamedTuple):
    """Where a command is, and what it is for.

    Attributes:
        module: Its module in ``commands``, imported only when the command runs, since most take seconds.
        name: Its class there: a dataclass of options with a method ``run``. A class method ``parse`` takes the place
            of the usual parsing.
        summary: The first sentence of its help.
        is_resumable: Whether it keeps what is finished when it is stopped.
    """

    module: str
    name: str
    summary: str
    is_resumable: bool = False


COMMANDS = {
    "predict": Command(
        "predict", "Predict", "Segment, track and name every instance of videos, folders of frames or images."
    ),
    "stream": Command("stream", "Stream", "Segment, track and name what a camera or a stream shows, while it goes on."),
    "rename": Command(
        "rename",
        "Rename",
        "Name what 'clipvis predict --save-raw' found by other classes, without running the network.",
    ),
    "export-results": Command(
        "export_results", "ExportResults", "Write the tracks of 'clipvis predict' in formats of other tools."
    ),
    "import": Command("import_annotations", "Import", "Make a data set of annotations that another tool wrote."),
    "convert": Command("convert", "Convert", "Make a model folder from PyTorch weights."),
    "export": Command(
        "export",
        "Export",
        "Write a model folder as a PyTorch state dict for the authors' code, or a training's checkpoint as a model.",
    ),
    "export-network": Command(
        "export_network", "ExportNetwork", "Write the network as a program that JAX runs without this package."
    ),
    "pack": Command("pack", "Pack", "Write a model folder as one file, which every command takes in its place."),
    "push": Command("push", "Push", "Upload a model to the Hugging Face hub, with a model card."),
    "eval": Command("evaluate", "Evaluate", "Run a model over a data set and score it by its official metrics.", True),
    "ablate": Command("ablate", "Ablate", "Switch the parts of the method one by one and score each setting.", True),
    "train": Command("train", "Train", "Train the decoders under a frozen CLIP, or pretrain a CLIP.", True),
    "finetune": Command(
        "finetune", "Finetune", "Train a model further on footage of your own, and say whether it got better.", True
    ),
    "compile-check": Command("compile_check", "CompileCheck", "Compile a training step for TPUs or GPUs, without any."),
    "prepare": Command("prepare", "Prepare", "Write a data set, images included, into a few large files.", True),
    "shapes": Command("shapes", "Shapes", "Draw videos of the Shapes world, with full ground truth.", True),
    "app": Command(
        "app", "App", "Serve a page on which videos are segmented, and tracks renamed, looked at and downloaded."
    ),
    "demo": Command("demo", "Demo", "Run the bundled model on the bundled clip."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C.

    A training that Ctrl-C or SIGTERM stops has saved itself, and returns 0.

    Raises:
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    with safe_printing():
        return _run(sys.argv[1:] if argv is None else list(argv))


def _run(arguments: Sequence[str]) -> int:
    """Run the command; see ``main``."""
    if arguments == ["--version"]:
        print_lines(f"clipvis {__version__}")
        return 0
    command = None
    with remembering_ctrl_c() as ctrl_c:
        try:
            command = parse_command(arguments)
            _hush_libraries()
            command.run()
        except (Exception, KeyboardInterrupt) as error:
            if ctrl_c.pressed or isinstance(error, KeyboardInterrupt):
                goes_on = command is not None and COMMANDS[arguments[0]].is_resumable
                line, code = GOES_ON if goes_on else STOPPED, 130
                end_all("stopped", code, line)
            elif isinstance(error, InputError):
                from clipvis_jax.commands.options import name_option  # noqa: PLC0415 (help needs no parser)

                message = name_option(str(error), arguments)
                line, code = f"clipvis: error: {message}", 2
                end_all(message, code, line)
            elif isinstance(error, OSError) and error.filename is not None:
                # Whatever path the system refuses: one too long, a folder that is gone, no permission.
                message = printable(f"{os.fsdecode(error.filename)}: {error.strerror}; check the path")
                line, code = f"clipvis: error: {message}", 2
                end_all(message, code, line)
            else:
                end_all(first_line(error), 1)
                raise
            print_lines(line, file=sys.stderr)
            return code
    return 0


def parse_command(arguments: Sequence[str]) -> Any:
    """Find the command and its options.

    Raises:
        InputError: There is no such command, or an option is out of range.
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print_lines(*_overview().splitlines(), file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    name, *options = arguments
    if name not in COMMANDS:
        raise InputError(f"{name}: is no command; give one of {', '.join(COMMANDS)}")
    with stopping_at_once():
        from clipvis_jax.commands.options import parse_options  # noqa: PLC0415 (help needs no parser)

        module = importlib.import_module(f"clipvis_jax.commands.{COMMANDS[name].module}")
    command = getattr(module, COMMANDS[name].name)
    if hasattr(command, "parse"):
        return command.parse(options)
    return parse_options(command, options, prog=f"clipvis {name}")


def _overview() -> str:
    """Name every command in a line."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: clipvis COMMAND [OPTIONS]\n\nOpen-vocabulary video instance segmentation.\n\n"
        f"{lines}\n\n'clipvis COMMAND --help' lists a command's options, 'clipvis --version' tells the version."
    )


def _hush_libraries() -> None:
    """Give a warning one line, and leave errors to ``main``: of one error orbax and tensorstore print hundreds.

    For the rest of the process, because threads may print after the error is known.
    """
    warnings.showwarning = _show_warning
    for name in ("absl", "asyncio", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata, of which only the orientation counts
    sys.unraisablehook = _show_unraisable
    sys.excepthook = _show_exception


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print_lines(f"clipvis: warning: {message}", file=sys.stderr)


def _show_exception(*error: Any) -> None:
    sys.stderr.write(without_controls("".join(traceback.format_exception(*error))))


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Ctrl-C came inside a callback, of which JAX has many while it compiles. Python drops exceptions there, so
        # it has to come once more, a little later.
        Timer(0.01, interrupt_main).start()
    elif str(unraisable.exc_value) != "Event loop is closed":
        # That one is tensorstore's, for every array that it had begun when another one failed.
        sys.__unraisablehook__(unraisable)


if _ctrl_c is signal.default_int_handler:
    signal.signal(signal.SIGINT, _ctrl_c)

if __name__ == "__main__":
    sys.exit(main())
