"""The folder that holds a data set's frames; no file name leads out of it."""

from pathlib import Path

from clipvis_jax.errors import InputError


class ImageFolder:
    """Reads files below a folder by the relative names that annotations give."""

    def __init__(self, root: Path) -> None:
        """Take the folder; whether it exists is for ``check``."""
        self.root = root

    def check(self) -> None:
        """Make sure that the folder exists.

        Raises:
            InputError: It does not.
        """
        if not self.root.is_dir():
            raise InputError(f"{self.root}: is not a folder; the data set's images must lie there")

    def read(self, name: str, where: str) -> bytes:
        """Return the bytes of a file; ``where`` says in messages which video it belongs to.

        Raises:
            InputError: The file is missing or cannot be read, or its name leads out of the folder. Links are followed:
                folders of images are often links to other disks.
        """
        path = self.root / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{path}: leads out of the image folder ({where}); correct the file name")
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise InputError(f"{path}: is not a file ({where}); give an image")
            return path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path}: is missing ({where}); complete the image folder or name another one") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({where}): {error.strerror or error}") from error
