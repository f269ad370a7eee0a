"""The command line: ``clipvis convert`` and ``clipvis predict``."""

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from clipvis_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Predict:
    """Segment, track and name every instance of a video, a folder of frames or an image.

    Writes tracks.json (YouTube-VIS results with class names and the video's facts) and overlay.mp4 (overlay.png for
    an image) into the output folder, and prints a table of the tracks.

    Examples:

      clipvis predict clip.mp4 --model model --classes "dog, puppy" kettle "coffee cup"

      clipvis predict frames/ --model model --classes-file names.txt --out out --every 2

    """

    source: Annotated[Path, tyro.conf.Positional]
    """Video file (anything FFmpeg reads), folder of images, or image."""
    model: Path
    """Model folder, made by 'clipvis convert'."""
    classes: tuple[str, ...] = ()
    """Class names; synonyms of one class are separated by commas: "dog, puppy"."""
    classes_file: Path | None = None
    """Text file with one class per line, synonyms separated by commas."""
    out: Path = Path("clipvis_out")
    """Folder for the results; made if it does not exist."""
    start: int = 0
    """First frame number, from 0."""
    end: int | None = None
    """First frame number that is left out (default: to the end)."""
    every: int = 1
    """Use every N-th frame."""
    size: int = 480
    """Shorter side that frames are resized to for the network, in pixels."""
    top_k: int | None = None
    """Number of (track, class) pairs (default: 50; 100 for an image)."""
    min_score: float = 0.2
    """Leave out pairs with a lower score; 0 gives exactly the method's results."""
    overlay: bool = True
    """Write the overlay."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; float32 equals the authors' results."""
    window: int | None = None
    """Frames per call of the network (default: 1 on a CPU, 8 elsewhere)."""


@dataclasses.dataclass(frozen=True)
class Convert:
    """Make a model folder from PyTorch weights.

    Backbone, widths, decoder layers and queries are worked out from the weights. Every entry must be used and every
    parameter filled, or all problems are listed and nothing is written.

    Examples:

      clipvis convert --checkpoint clipvis_lvis_r50_7.pth --out model

      clipvis convert --clip open_clip_model.safetensors --out untrained --tokenizer bpe_simple_vocab_16e6.txt.gz

    """

    out: Path
    """Model folder to write."""
    checkpoint: Path | None = None
    """The authors' checkpoint (.pth), which holds CLIP as well."""
    clip: Path | None = None
    """CLIP alone, as an open_clip state dict (.safetensors, .bin, .pt). Without --checkpoint the decoders get random
    values, for training."""
    tokenizer: str = "openai/clip-vit-base-patch32"
    """Tokenizer: a folder in transformers' format, a hub name, or the merges file in open_clip's package."""
    activation: Literal["quick_gelu", "gelu"] | None = None
    """Activation of the text encoder, which weights do not show (default: quick_gelu for ResNets, as OpenAI trained
    them; gelu for ConvNeXts)."""
    text_heads: int | None = None
    """Attention heads of the text encoder, which weights do not show (default: one per 64 channels)."""
    seed: int = 0
    """Seed of the decoders' random values."""
    overwrite: bool = False
    """Replace the model folder if it exists."""


Command = Annotated[Predict, tyro.conf.subcommand("predict")] | Annotated[Convert, tyro.conf.subcommand("convert")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    command = tyro.cli(Command, prog="clipvis", description="Open-vocabulary video instance segmentation.", args=argv)
    warnings.showwarning = _show_warning
    try:
        match command:
            case Predict():
                predict(command)
            case Convert():
                convert(command)
    except InputError as error:
        print(f"clipvis: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clipvis: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def predict(options: Predict) -> None:
    """Run ``clipvis predict``."""
    from clipvis_jax import outputs
    from clipvis_jax.files import prepare_output_dir
    from clipvis_jax.loading import enable_compilation_cache, load
    from clipvis_jax.segmenter import InferenceConfig
    from clipvis_jax.text import check_vocabulary
    from clipvis_jax.video import FrameSelection, open_frames

    # Whatever can be wrong is looked at before the work begins.
    classes = read_classes(options.classes, options.classes_file)
    check_vocabulary(classes)
    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score {options.min_score}: must be between 0 and 1")
    if options.top_k is not None and options.top_k < 1:
        raise InputError(f"--top-k {options.top_k}: must be 1 or more")
    selection = FrameSelection(options.start, options.end, options.every)
    source = open_frames(options.source, selection)
    out = prepare_output_dir(options.out)
    config = InferenceConfig(size=options.size, window=options.window, temp_dir=out)
    enable_compilation_cache()
    segmenter = load(options.model, dtype=options.dtype, config=config)
    result = segmenter.predict(source, classes, top_k=options.top_k, min_score=options.min_score, show_progress=True)
    written = [outputs.write_tracks(out / "tracks.json", result, source, selection)]
    if options.overlay:
        written.append(outputs.write_overlay(out, result, source, selection, show_progress=True))
    outputs.print_summary(result)
    print("wrote " + " and ".join(str(path) for path in written))


def convert(options: Convert) -> None:
    """Run ``clipvis convert``."""
    from clipvis_jax.checkpoints import save_model
    from clipvis_jax.convert import from_state_dict, read_checkpoints
    from clipvis_jax.model_sizes import describe
    from clipvis_jax.state_dicts import file_sha256
    from clipvis_jax.tokenizer import load_tokenizer
    from clipvis_jax.version import __version__

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
    """Return the class names of the command line or of a file with one class per line."""
    if classes_file is None:
        if not classes:
            raise InputError("no class given; name them with --classes or --classes-file")
        return list(classes)
    if classes:
        raise InputError("--classes and --classes-file exclude each other; give one of them")
    try:
        lines = classes_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{classes_file}: cannot be read ({reason}); give a text file with one class per line"
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise InputError(f"{classes_file}: holds no class; write one class per line")
    return names


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"clipvis: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
