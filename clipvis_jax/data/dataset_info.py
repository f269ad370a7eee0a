"""What a data set is beside its records: how it is scored, where results are handed in, what to compare with."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Server:
    """Where results are scored whose ground truth is not public.

    ``zip_limit`` is the largest upload in bytes; None if no limit is known.
    """

    name: str
    url: str
    zip_limit: int | None = None


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set; the defaults are right for videos of one's own. No file name decides any of it.

    Attributes:
        media: ``images`` if every record is a picture by itself, which the image model is run on.
        protocol: Name of the official protocol that scores it; None if there is none.
        server: Where results are handed in, if the ground truth is not public.
        published_as: The name under which the authors publish figures for it (see ``evaluation.published``), if any.
        novel_names: Names of classes to report as novel, where the categories do not say so themselves.
        authors_novel_names: Those that the authors' script tells in effect; it breaks some names in two.
        background: Background names of models that are trained on it, see ``text.background``; None: everyday ones.
        purpose: What it is for, where anything else would make scores worthless; None: for anything.
    """

    media: Literal["videos", "images"] = "videos"
    protocol: str | None = None
    server: Server | None = None
    published_as: str | None = None
    novel_names: tuple[str, ...] = ()
    authors_novel_names: tuple[str, ...] = ()
    background: tuple[str, ...] | None = None
    purpose: Literal["training", "evaluation"] | None = None

    @property
    def is_images(self) -> bool:
        """Whether every record is a picture by itself."""
        return self.media == "images"
