"""``clipvis predict``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import arg

from clipvis_jax.commands.interrupt import stopping_at_once
from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines

if TYPE_CHECKING:
    from clipvis_jax.inference.segmenter import Background


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
    """Video file (MP4, MOV, MKV, WebM, AVI, MPEG and others), animation, folder of images, or image."""
    model: Annotated[Path, arg(metavar="DIR")]
    """Model folder, made by 'clipvis convert'."""
    classes: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = ()
    """Class names; synonyms of one class are separated by commas: "dog, puppy"."""
    classes_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Text file with one class per line, synonyms separated by commas; instead of --classes."""
    background: Annotated[
        tuple[str, ...],
        arg(
            metavar="auto|none|FILE.txt|NAME [NAME ...]",
            help_behavior_hint="(default: auto, or none with --min-score 0)",
        ),
    ] = ()
    """What else the video may show: names that take part in the classification and are left out of the results. Without
    any, all that is found gets one of the class names. auto: the model's own list, or some 300 everyday things, for
    fewer than 50 classes. FILE: a .txt file with one name per line."""
    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_out")
    """Folder for the results; made if it does not exist. Results of an earlier run are replaced."""
    start: Annotated[int, arg(metavar="N")] = 0
    """First frame number, from 0."""
    end: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the end)")] = None
    """First frame number that is left out."""
    every: Annotated[int, arg(metavar="N")] = 1
    """Use every N-th frame."""
    on_error: Literal["stop", "skip"] = "stop"
    """Where a video cannot be decoded: stop with an error, or skip those frames and say which are missing."""
    max_pixels: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 80 million)")] = None
    """Refuse larger frames (width times height), which may take gigabytes; images may have up to 178 million."""
    size: Annotated[
        int | None,
        arg(metavar="PIXELS", help_behavior_hint="(default: the model's, or 480 for a video, 800 for an image)"),
    ] = None
    """Shorter side that frames are resized to for the network."""
    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50; 100 for an image)")] = None
    """Number of (track, class) pairs."""
    min_score: Annotated[float, arg(metavar="SCORE")] = 0.2
    """Leave out pairs with a lower score, 0 to 1; 0 gives exactly the method's results, unless other options
    change them."""
    scores: Literal["all", "visible"] = "all"
    """Frames that a track's score is averaged over: all of them, as the method does, so that it sinks with every frame
    that does not show the object, or those in which the track is visible. Of an image there is only one."""
    overlay: Annotated[bool, arg(help_behavior_hint="")] = True
    """Do not write the overlay."""
    embeddings: bool = False
    """Write the CLIP embedding of every track into tracks.json, for searching and grouping."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; float32 equals the authors' results."""
    window: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 1 on a CPU, 8 elsewhere)")] = None
    """Frames per call of the network."""

    def run(self) -> None:
        """Run ``clipvis predict``.

        Raises:
            InputError: An option, the source, the model or the output folder cannot be used; nothing was written.
        """
        # Whatever can be wrong is looked at before the work begins, the quick checks first.
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: must be between 0 and 1")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"--top-k {self.top_k}: must be 1 or more")
        if self.max_pixels is not None and self.max_pixels < 1:
            raise InputError(f"--max-pixels {self.max_pixels}: must be 1 or more")
        with stopping_at_once():
            from clipvis_jax.commands import predict_outputs
            from clipvis_jax.inference.loading import enable_compilation_cache, load
            from clipvis_jax.inference.scores import ScoreConfig
            from clipvis_jax.inference.segmenter import InferenceConfig
            from clipvis_jax.media.images import MAX_PIXELS
            from clipvis_jax.media.video_reader import FrameSelection, open_frames

            classes = read_classes(self.classes, self.classes_file)
            background = self._read_background()
            selection = FrameSelection(self.start, self.end, self.every)
            config = InferenceConfig(
                size=self.size, window=self.window, scores=ScoreConfig(over=self.scores), temp_dir=self.out
            )
            source = open_frames(
                self.source, selection, on_error=self.on_error, max_pixels=self.max_pixels or MAX_PIXELS
            )
            if self.overlay and predict_outputs.overlay_path(self.out, source).resolve() == self.source.resolve():
                raise InputError(f"{self.source}: the overlay would replace it; choose another --out")
            enable_compilation_cache()
            segmenter = load(self.model, dtype=self.dtype, config=config)
        with predict_outputs.output_folder(self.out) as out:
            result = segmenter.predict(
                source,
                classes,
                background=background,
                top_k=self.top_k,
                min_score=self.min_score,
                show_progress=True,
            )
            written = predict_outputs.write_results(
                out,
                result,
                source,
                selection,
                overlay=self.overlay,
                show_progress=True,
                embeddings=self.embeddings,
            )
        predict_outputs.print_summary(result, predict_outputs.frame_numbers(source, selection, result.num_frames))
        print_lines("wrote " + " and ".join(str(path) for path in written))

    def _read_background(self) -> "Background":
        """Return the background names that are asked for.

        Raises:
            InputError: The file cannot be read, or a name cannot be used.
        """
        given = self.background or ("none" if self.min_score == 0 else "auto",)
        if given in {("auto",), ("none",)}:
            return "auto" if given == ("auto",) else ()
        if len(given) == 1 and given[0].endswith(".txt"):
            return read_classes((), Path(given[0]), option="--background")
        return read_classes(given, None, option="--background")


def read_classes(classes: Sequence[str], classes_file: Path | None, *, option: str = "--classes") -> list[str]:
    """Return the class names of the command line, or of a file with one class per line; ``option`` is who asks.

    Raises:
        InputError: There is none, both are given, the file cannot be read, or a name cannot be used.
    """
    from clipvis_jax.text.vocabulary import check_vocabulary

    if classes_file is None:
        if not classes:
            raise InputError("no class given; name them with --classes or --classes-file")
        if any("\udc80" <= character <= "\udcff" for name in classes for character in name):
            # Python's stand-ins for bytes of an argument that it could not decode.
            raise InputError(f"{option}: a name is not UTF-8 text; use a UTF-8 terminal, or a file of names")
        try:
            check_vocabulary(classes)
        except InputError as error:
            raise InputError(f"{option}: {error}" if option != "--classes" else str(error)) from error
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
