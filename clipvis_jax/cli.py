"""The command line: ``clipvis convert`` and ``clipvis predict``."""

import dataclasses
import logging
import os
import signal
import sys
import warnings
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer, current_thread, main_thread
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.errors import InputError
from clipvis_jax.version import __version__

# Imports of anything large stand in the functions that need it, so that --help and bad options answer at once.


@dataclasses.dataclass(frozen=True)
class Predict:
    """Segment, track and name every instance of a video, a folder of frames or an image.

    Writes tracks.json (YouTube-VIS results with class names and the video's facts) and overlay.mp4 (overlay.png for
    an image) into the output folder, and prints a table of the tracks.

    For example:
      clipvis predict clip.mp4 --model model --classes "dog, puppy" kettle "coffee cup"
      clipvis predict frames/ --model model --classes-file names.txt --out out --every 2
    """

    source: Annotated[Path, tyro.conf.Positional, arg(metavar="SOURCE")]
    """Video file (anything FFmpeg reads), folder of images, or image."""
    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder, made by 'clipvis convert'."""
    classes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()
    """Class names; synonyms of one class are separated by commas: "dog, puppy"."""
    classes_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Text file with one class per line, synonyms separated by commas; instead of --classes."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_out")
    """Folder for the results; made if it does not exist. Results of an earlier run are replaced."""
    start: Annotated[int, arg(metavar="N")] = 0
    """First frame number, from 0."""
    end: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the end)")] = None
    """First frame number that is left out."""
    every: Annotated[int, arg(metavar="N")] = 1
    """Use every N-th frame."""
    size: Annotated[int, arg(metavar="PIXELS")] = 480
    """Shorter side that frames are resized to for the network."""
    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50; 100 for an image)")] = None
    """Number of (track, class) pairs."""
    min_score: Annotated[float, arg(metavar="SCORE")] = 0.2
    """Leave out pairs with a lower score, 0 to 1; 0 gives exactly the method's results."""
    overlay: Annotated[bool, arg(help_behavior_hint="")] = True
    """Do not write the overlay."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; float32 equals the authors' results."""
    window: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1 on a CPU, 8 elsewhere)")] = None
    """Frames per call of the network."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Make a model folder from PyTorch weights.

    Backbone, widths, decoder layers and queries are worked out from the weights. Every entry must be used and every
    parameter filled, or all problems are listed and nothing is written.

    For example:
      clipvis convert --checkpoint clipvis_lvis_r50_7.pth --out model
      clipvis convert --clip open_clip_model.safetensors --out untrained --tokenizer bpe_simple_vocab_16e6.txt.gz
    """

    out: Annotated[Path, arg(metavar="DIR")]
    """Model folder to write."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """The authors' checkpoint (.pth), which holds CLIP as well."""
    clip: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """CLIP alone, as an open_clip state dict (.safetensors, .bin, .pt). Without --checkpoint the decoders get random
    values, for training; with it, this CLIP takes the place of the checkpoint's."""
    tokenizer: Annotated[str, arg(metavar="NAME")] = "openai/clip-vit-base-patch32"
    """Tokenizer: a folder in transformers' format, a name on the Hugging Face hub, or the file
    bpe_simple_vocab_16e6.txt.gz of open_clip's package."""
    activation: Annotated[
        Literal["quick_gelu", "gelu"] | None,
        arg(
            metavar="{quick_gelu,gelu}",
            help_behavior_hint="(default: quick_gelu for ResNets, as OpenAI trained them; gelu for ConvNeXts)",
        ),
    ] = None
    """Activation of the text encoder, which weights do not show."""
    text_heads: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one per 64 channels)")] = None
    """Attention heads of the text encoder, which weights do not show."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Seed of the decoders' random values."""
    overwrite: Annotated[bool, arg(help_behavior_hint="")] = False
    """Replace the model folder if it exists."""


_STOPPED = "clipvis: stopped; nothing was written"

Command = Annotated[Predict, tyro.conf.subcommand("predict")] | Annotated[Convert, tyro.conf.subcommand("convert")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C.

    Raises:
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments == ["--version"]:
        print(f"clipvis {__version__}")
        return 0
    try:
        command = tyro.cli(
            Command,
            prog="clipvis",
            description="Open-vocabulary video instance segmentation.\n\n"
            "'clipvis predict --help' and 'clipvis convert --help' list the options; 'clipvis --version' the version.",
            args=arguments,
            config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
        )
        _hush_libraries()
        match command:
            case Predict():
                predict(command)
            case Convert():
                convert(command)
    except InputError as error:
        print(f"clipvis: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return 130
    return 0


def predict(options: Predict) -> None:
    """Run ``clipvis predict``.

    Raises:
        InputError: An option, the source, the model or the output folder cannot be used; nothing was written.
    """
    # Whatever can be wrong is looked at before the work begins, the quick checks first.
    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score {options.min_score}: must be between 0 and 1")
    if options.top_k is not None and options.top_k < 1:
        raise InputError(f"--top-k {options.top_k}: must be 1 or more")
    with _stopping_at_once():
        from clipvis_jax import outputs
        from clipvis_jax.loading import enable_compilation_cache, load
        from clipvis_jax.segmenter import InferenceConfig
        from clipvis_jax.video import FrameSelection, open_frames

        classes = read_classes(options.classes, options.classes_file)
        selection = FrameSelection(options.start, options.end, options.every)
        config = InferenceConfig(size=options.size, window=options.window, temp_dir=options.out)
        source = open_frames(options.source, selection)
        if options.overlay and outputs.overlay_path(options.out, source).resolve() == options.source.resolve():
            raise InputError(f"{options.source}: the overlay would replace it; choose another --out")
        enable_compilation_cache()
        segmenter = load(options.model, dtype=options.dtype, config=config)
    with outputs.output_folder(options.out) as out:
        result = segmenter.predict(
            source, classes, top_k=options.top_k, min_score=options.min_score, show_progress=True
        )
        written = outputs.write_results(out, result, source, selection, overlay=options.overlay, show_progress=True)
    outputs.print_summary(result, selection)
    print("wrote " + " and ".join(str(path) for path in written))


def convert(options: Convert) -> None:
    """Run ``clipvis convert``.

    Raises:
        InputError: An option, the weights, the tokenizer or the model folder cannot be used; nothing was written.
    """
    if not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed}: must be between 0 and {2**32 - 1}")
    with _stopping_at_once():
        from clipvis_jax.checkpoints import check_target, save_model
        from clipvis_jax.convert import from_state_dict, read_checkpoints
        from clipvis_jax.model_sizes import describe
        from clipvis_jax.state_dicts import file_sha256
        from clipvis_jax.tokenizer import load_tokenizer

        check_target(options.out, overwrite=options.overwrite)
        files = {"checkpoint": options.checkpoint, "clip": options.clip}
        state_dict = read_checkpoints(options.checkpoint, options.clip)
        config, clip_vars, params = from_state_dict(
            state_dict,
            source=" + ".join(str(path) for path in files.values() if path),
            activation=options.activation,
            text_heads=options.text_heads,
            seed=options.seed,
        )
        tokenizer = load_tokenizer(options.tokenizer, context_length=config.text.context_length)
        source = {name: {"file": path.name, "sha256": file_sha256(path)} for name, path in files.items() if path}
    save_model(
        options.out,
        config,
        clip_vars,
        params,
        tokenizer,
        source=source | {"converter": f"clipvis_jax {__version__}", "seed": options.seed},
        overwrite=options.overwrite,
    )
    print(describe(config))
    if options.checkpoint is None:
        print(f"the decoders are not trained: random values from seed {options.seed}")
    print(f"wrote {options.out}")


def read_classes(classes: Sequence[str], classes_file: Path | None) -> list[str]:
    """Return the class names of the command line, or of a file with one class per line.

    Raises:
        InputError: There is none, both are given, the file cannot be read, or a name cannot be used.
    """
    from clipvis_jax.text import check_vocabulary

    if classes_file is None:
        if not classes:
            raise InputError("no class given; name them with --classes or --classes-file")
        if any("\udc80" <= character <= "\udcff" for name in classes for character in name):
            # Python's stand-ins for bytes of an argument that it could not decode.
            raise InputError("--classes: a name is not UTF-8 text; use a UTF-8 terminal or --classes-file")
        check_vocabulary(classes)
        return list(classes)
    if classes:
        raise InputError("--classes and --classes-file exclude each other; give one of them")
    try:
        lines = classes_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{classes_file}: cannot be read ({reason}); give a text file with one class per line"
        ) from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{classes_file}: holds no class; write one class per line")
    try:
        check_vocabulary(names)
    except InputError as error:
        raise InputError(f"{classes_file}: {error}") from error
    return names


@contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once; for blocks that write nothing.

    Python's own way, an exception, is lost or worse in the middle of imports.
    """

    def stop(*_: object) -> None:
        os.write(2, f"{_STOPPED}\n".encode())
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield  # somebody else's to decide
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _hush_libraries() -> None:
    """Give a warning one line, and leave errors to ``main``: of one error orbax and tensorstore print hundreds.

    For the rest of the process, because threads may print after the error is known.
    """
    warnings.showwarning = _show_warning
    logging.getLogger("absl").setLevel(logging.CRITICAL)
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
