"""The options of commands that name what is found, and what they mean."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from clipvis_jax.errors import InputError
from clipvis_jax.io.terminal import print_lines

if TYPE_CHECKING:
    from clipvis_jax.inference.segmenter import Background

_MIN_SCORE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassOptions:
    """What to look for."""

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
    top_k: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 50; 100 for an image)")] = None
    """Number of (track, class) pairs."""
    min_score: Annotated[
        float | None,
        arg(metavar="SCORE", help_behavior_hint="(default: 0.2, or the model's where no background names take part)"),
    ] = None
    """Leave out pairs with a lower score, 0 to 1; 0 gives exactly the method's results, unless other options
    change them."""

    def check(self) -> None:
        """Make sure that the numbers can be used.

        Raises:
            InputError: One is out of range.
        """
        if self.min_score is not None and not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: must be between 0 and 1")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"--top-k {self.top_k}: must be 1 or more")

    def lowest_score(self, model: Path, classes: Sequence[str], background: "Background") -> float:
        """Return from which score on results are kept: what is asked for, what the model folder says, or 0.2.

        What the folder says is for scores without background names, which are higher than those with them.
        """
        from clipvis_jax.text.background import LONG_VOCABULARY
        from clipvis_jax.weights.model_folder import find_model, read_run_defaults

        if self.min_score is not None:
            return self.min_score
        defaults = read_run_defaults(find_model(model))
        if background == "auto" and (len(classes) >= LONG_VOCABULARY or defaults.background == ()):
            background = ()
        return _MIN_SCORE if background or defaults.min_score is None else defaults.min_score

    def classes_for(self, model: Path) -> list[str]:
        """Return the class names: those given, or the ones that a model was trained on, where its folder says them."""
        from clipvis_jax.weights.model_folder import find_model, read_run_defaults

        if not self.classes and self.classes_file is None:
            known = read_run_defaults(find_model(model)).classes
            if known is not None:
                print_lines(
                    f"looks for the {len(known)} classes that the model was trained on; --classes names others",
                    file=sys.stderr,
                )
                return list(known)
        return self.read_classes()

    def read_classes(self) -> list[str]:
        """Return the class names; see ``read_classes``."""
        return read_classes(self.classes, self.classes_file)

    def read_background(self) -> "Background":
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamingOptions(ClassOptions):
    """What to look for, and what is written of it."""

    out: Annotated[Path, arg(metavar="DIR")] = Path("clipvis_out")
    """Folder for the results; made if it does not exist. Results of an earlier run are replaced."""
    scores: Literal["all", "visible"] = "all"
    """Frames that a track's score is averaged over: all of them, as the method does, so that it sinks with every frame
    that does not show the object, or those in which the track is visible. Of an image there is only one."""
    overlay: Annotated[bool, arg(help_behavior_hint="")] = True
    """Do not write the overlay."""
    show: Annotated[tuple[str, ...], arg(metavar="CLASS [CLASS ...]", help_behavior_hint="(default: all)")] = ()
    """Draw only instances of these classes in the overlay; their first synonyms are enough."""
    embeddings: bool = False
    """Write the CLIP embedding of every track into tracks.json, for searching and grouping."""

    def read_shown(self, classes: Sequence[str]) -> set[str] | None:
        """Return which of the classes the overlay shows; None: all.

        Raises:
            InputError: A name is none of theirs.
        """
        from clipvis_jax.text.vocabulary import short_names

        names = {short: name for name, short in zip(classes, short_names(tuple(classes)), strict=True)}
        names |= {name: name for name in classes}
        for name in self.show:
            if name not in names:
                raise InputError(f"--show {name}: is none of the classes; give names that are looked for")
        return {names[name] for name in self.show} or None


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
