"""The command line, ``clipvis``: finds the command, and says in one line what went wrong."""

import logging
import sys
import warnings
from _thread import interrupt_main
from collections.abc import Sequence
from threading import Timer
from typing import Annotated

import tyro

from clipvis_jax.commands.ablate import Ablate
from clipvis_jax.commands.compile_check import CompileCheck, parse_compile_check
from clipvis_jax.commands.convert import Convert
from clipvis_jax.commands.demo import Demo
from clipvis_jax.commands.evaluate import Evaluate
from clipvis_jax.commands.export import Export
from clipvis_jax.commands.interrupt import GOES_ON, STOPPED, remembering_ctrl_c
from clipvis_jax.commands.predict import Predict
from clipvis_jax.commands.prepare import Prepare
from clipvis_jax.commands.shapes import Shapes
from clipvis_jax.commands.train import Train, parse_train
from clipvis_jax.errors import InputError
from clipvis_jax.version import __version__

Command = (
    Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Evaluate, tyro.conf.subcommand("eval")]
    | Annotated[Ablate, tyro.conf.subcommand("ablate")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Shapes, tyro.conf.subcommand("shapes")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)

RESUMABLE = (Evaluate, Ablate, Prepare, Shapes, Train)
"""Commands that keep what is finished when they are stopped."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C.

    A training that Ctrl-C or SIGTERM stops has saved itself, and returns 0.

    Raises:
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments == ["--version"]:
        print(f"clipvis {__version__}")
        return 0
    command: Command | Train | CompileCheck | None = None
    with remembering_ctrl_c() as ctrl_c:
        try:
            command = parse_command(arguments)
            _hush_libraries()
            command.run()
        except (Exception, KeyboardInterrupt) as error:
            if ctrl_c.pressed or isinstance(error, KeyboardInterrupt):
                print(GOES_ON if isinstance(command, RESUMABLE) else STOPPED, file=sys.stderr)
                return 130
            if isinstance(error, InputError):
                print(f"clipvis: error: {error}", file=sys.stderr)
                return 2
            raise
    return 0


def parse_command(arguments: Sequence[str]) -> Command | Train | CompileCheck:
    """Find the command and its options.

    Raises:
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    if arguments[:1] == ["train"]:
        return parse_train(arguments[1:])
    if arguments[:1] == ["compile-check"]:
        return parse_compile_check(arguments[1:])
    return tyro.cli(
        Command,
        prog="clipvis",
        description="Open-vocabulary video instance segmentation.\n\n"
        "'clipvis COMMAND --help' lists a command's options; 'clipvis train' trains and 'clipvis "
        "compile-check' compiles a training for TPUs (their options depend on a configuration: 'clipvis train CONFIG "
        "--help'); 'clipvis --version' tells the version.",
        args=list(arguments),
        config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
    )


def _hush_libraries() -> None:
    """Give a warning one line, and leave errors to ``main``: of one error orbax and tensorstore print hundreds.

    For the rest of the process, because threads may print after the error is known.
    """
    warnings.showwarning = _show_warning
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _show_unraisable


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"clipvis: warning: {message}", file=sys.stderr)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Ctrl-C came inside a callback, of which JAX has many while it compiles. Python drops exceptions there, so
        # it has to come once more, a little later.
        Timer(0.01, interrupt_main).start()
    elif str(unraisable.exc_value) != "Event loop is closed":
        # That one is tensorstore's, for every array that it had begun when another one failed.
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    sys.exit(main())
