"""Model folders: sizes, parameters, tokenizer and provenance in one place.

A folder holds ``config.json`` (format version, sizes, checksum, where the weights come from), ``variables/``
(parameters, by orbax), ``tokenizer/`` (files in transformers' format) and ``manifest.json`` (SHA-256 of the other files
but the parameters, whose checksum is in ``config.json``). On the hub the parameters are in ``model.safetensors``, by
the authors' names.
"""

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from clipvis_jax.distributed import wait_for_all
from clipvis_jax.errors import InputError, first_line
from clipvis_jax.io.files import exchange, output_error
from clipvis_jax.io.folder_lock import LOCK, locked_folder
from clipvis_jax.io.json_text import read_json
from clipvis_jax.models.backbones import KINDS
from clipvis_jax.models.clip_text import TextConfig
from clipvis_jax.models.clipvis import ClipVisConfig, Variables, clip_shapes, decoder_shapes
from clipvis_jax.models.ops import STRIDE
from clipvis_jax.models.pixel_decoder import PixelDecoderConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.models.sizes import MAX_INPUT_SIDE
from clipvis_jax.text.tokenizer import ClipTokenizer, load_tokenizer
from clipvis_jax.weights import hub, packed_model
from clipvis_jax.weights.convert import from_state_dict, to_state_dict
from clipvis_jax.weights.state_dicts import file_sha256, read_state_dict, write_state_dict

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_LARGEST_CONFIG = 2**22
_MOST_COMPRESSED = 8
"""Weights hardly shrink when they are compressed."""
Storage = Literal["float32", "float16"]
"""Types in which variables may be stored; they are read as float32."""


@dataclasses.dataclass(frozen=True)
class RunDefaults:
    """How a model is run where nothing else is asked for; it stands in its folder.

    Attributes:
        size: Shorter side of the network's input, in pixels; None: the method's.
        max_size: Limit of the longer side, where there is a size.
        background: The model's own background names (see ``text.background``); None: everyday things.
        min_score: The score from which on results are worth showing, 0..1, where no background names take part; None:
            nobody has found out.
        classes: The names of the classes that it was trained on; None: they are not known.
    """

    size: int | None = None
    max_size: int = 1333
    background: tuple[str, ...] | None = None
    min_score: float | None = None
    classes: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds; ``source`` says where the weights come from."""

    config: ClipVisConfig
    clip_vars: Variables
    params: Variables
    tokenizer: ClipTokenizer
    source: dict[str, Any]
    run_defaults: RunDefaults = RunDefaults()


def config_to_json(config: ClipVisConfig) -> dict[str, Any]:
    """Write sizes as JSON."""
    backbone = {"kind": config.backbone.kind, **dataclasses.asdict(config.backbone)}
    return dataclasses.asdict(config) | {"backbone": backbone}


def config_from_json(data: dict[str, Any]) -> ClipVisConfig:
    """Read sizes from JSON."""

    def tuples(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}

    backbone = dict(data["backbone"])
    return ClipVisConfig(
        backbone=KINDS[backbone.pop("kind")](**tuples(backbone)),
        text=TextConfig(**data["text"]),
        pixel_decoder=PixelDecoderConfig(**data["pixel_decoder"]),
        query_decoder=QueryDecoderConfig(**data["query_decoder"]),
    )


def run_defaults_from_json(data: dict[str, Any]) -> RunDefaults:
    """Read run defaults from JSON, as ``dataclasses.asdict`` gives them.

    Raises:
        TypeError, ValueError: They cannot be that.
    """
    size, max_size, min_score = data.get("size"), data.get("max_size", RunDefaults.max_size), data.get("min_score")
    numbers = {type(size), type(max_size)} == {int}
    if size is not None and not (numbers and STRIDE <= size <= max_size <= MAX_INPUT_SIDE):
        raise ValueError(f"size {size}, max_size {max_size}: give numbers of pixels from {STRIDE} to {MAX_INPUT_SIDE}")
    if min_score is not None and not (type(min_score) in (int, float) and 0 <= min_score <= 1):
        raise ValueError(f"min_score {min_score}: give a number from 0 to 1")
    names = {field: data.get(field) for field in ("background", "classes")}
    for field, value in names.items():
        if value is not None and not (
            isinstance(value, list) and all(isinstance(name, str) and name.strip() for name in value)
        ):
            raise TypeError(f"{field}: a list of names expected")
    tuples = {field: None if value is None else tuple(value) for field, value in names.items()}
    min_score = None if min_score is None else float(min_score)
    return RunDefaults(size, max_size, tuples["background"], min_score, tuples["classes"])


def read_run_defaults(folder: Path) -> RunDefaults:
    """Read how a model is run, without opening it; what is wrong with its folder is for ``load_model`` to say."""
    try:
        return run_defaults_from_json(_read_description(folder)["inference"])
    except Exception:  # as for load_model
        return RunDefaults()


def _read_description(folder: Path) -> Any:
    """Read config.json, of which nothing is known yet; any error may come of it."""
    file = folder / "config.json"
    if file.stat().st_size > _LARGEST_CONFIG:
        raise ValueError("it is too large")
    return json.loads(file.read_bytes())


def set_min_score(folder: Path, min_score: float) -> None:
    """Note in a model folder from which score on results are worth showing, 0..1; all else stays.

    The folder is replaced as a whole, so that its manifest always fits.

    Raises:
        InputError: It cannot be written.
    """
    folder = folder.resolve()
    try:
        with _temporary_folder(folder) as temporary:
            new = temporary / "new"
            shutil.copytree(folder, new)
            description = json.loads((new / "config.json").read_bytes())
            description["inference"] = description.get("inference", {}) | {"min_score": min_score}
            (new / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            (new / MANIFEST).write_text(json.dumps(_digests(new), indent=2) + "\n", encoding="utf-8")
            _move_into_place(new, folder, old=temporary / "old")
    except (OSError, shutil.Error) as error:
        raise InputError(f"{folder}: cannot be written ({first_line(error)}); check space and rights") from error


def hash_variables(variables: Variables) -> str:
    """Return a digest of a tree's names and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def checksum(variables: Variables) -> str:
    """Return a CRC-32 of a tree's values: as quick as reading them, and enough to notice damage."""
    crc = 0
    for leaf in jax.tree.leaves(variables):
        crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
    return f"{crc:08x}"


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a model folder can be written.

    Raises:
        InputError: The path is taken, or nothing can be written there.
    """
    folder = folder.resolve()
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not overwrite:
                raise InputError(f"{folder}: exists already; choose another folder or set overwrite")
            if not (folder / "config.json").is_file() or not (folder / "variables").is_dir():
                raise InputError(f"{folder}: holds something else than a model, so it stays; choose another folder")
        elif folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, but a folder is needed; choose another folder")
        with tempfile.TemporaryFile(dir=_nearest_folder(folder.parent)) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise output_error(folder, error) from error


def save_model(
    folder: Path,
    config: ClipVisConfig,
    clip_vars: Variables,
    params: Variables,
    tokenizer: ClipTokenizer,
    *,
    source: dict[str, Any],
    run_defaults: RunDefaults = RunDefaults(),
    storage: Storage = "float32",
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all. Stored as float16 it is half as large, and rounded.

    Where several processes work together, all of them call this: orbax waits for all. The first one's values are
    written, and when the others return the folder is there.

    Raises:
        InputError: The path is taken (a model may be replaced if ``overwrite`` is set), it cannot be written, or the
            tokenizer belongs to another text encoder.
    """
    _check_vocabulary(tokenizer, config.text)
    check_target(folder, overwrite=overwrite)
    folder = folder.resolve()
    # What is written as numpy arrays can be read on any devices.
    variables = jax.tree.map(lambda x: np.asarray(x, storage), {"clip_vars": clip_vars, "params": params})
    is_first = jax.process_index() == 0
    try:
        with _temporary_folder(folder) as temporary:
            new = temporary / "new"
            if is_first:
                new.mkdir()
            wait_for_all("model folder begun")
            _save_variables(new / "variables", variables)
            if is_first:
                # Orbax notes in it, and never reads, what the folder was called on the machine that wrote it.
                (new / "variables" / "commit_success.txt").unlink(missing_ok=True)
                _save_rest(new, ModelFolder(config, clip_vars, params, tokenizer, source, run_defaults), variables)
                check_target(folder, overwrite=overwrite)
                _move_into_place(new, folder, old=temporary / "old")
    except OSError as error:
        raise output_error(folder, error) from error
    wait_for_all("model folder written")


def save_for_hub(folder: Path, model: ModelFolder) -> None:
    """Write a model into an empty folder, with its parameters as safetensors; ``load_model`` reads it.

    Raises:
        OSError: It cannot be written.
    """
    write_state_dict(folder / hub.WEIGHTS, to_state_dict(model.config, model.clip_vars, model.params), metadata={})
    _save_rest(folder, model, {"clip_vars": model.clip_vars, "params": model.params})


def _save_rest(folder: Path, model: ModelFolder, variables: Variables) -> None:
    """Write all of a model folder but its variables, which are given as they are stored."""
    description = {
        "format_version": FORMAT_VERSION,
        "config": config_to_json(model.config),
        "checksum": checksum(variables),
        "inference": dataclasses.asdict(model.run_defaults),
        "source": model.source,
    }
    model.tokenizer.save(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(_digests(folder), indent=2) + "\n", encoding="utf-8")


def find_model(source: str | Path) -> Path:
    """Return the folder of a model: of one on the hub or of an archive, that in the cache.

    Args:
        source: A model folder, an archive of ``clipvis pack``, or ``hf://org/name``, ``hf://org/name@revision``.

    Raises:
        InputError: It is not to be had from the hub, or is no whole archive.
    """
    if hub.is_address(source):
        return hub.fetch_model(source)
    path = Path(source)
    return packed_model.unpack(path) if path.suffix == packed_model.SUFFIX and path.is_file() else path


def load_model(folder: str | Path) -> ModelFolder:
    """Read a model; needs no torch, and a network only for one on the hub that is not in its cache. See ``find_model``.

    Warns:
        UserWarning: The folder is of an older version, in which changed files go unnoticed.

    Raises:
        InputError: Not a model folder, one of a newer version, or a damaged one.
    """
    folder = find_model(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        what = "not a model folder (no config.json)" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; make a model folder with 'clipvis convert'")
    try:
        description = _read_description(folder)
        version = description["format_version"]
        if type(version) is not int:
            raise TypeError("format_version is no whole number")
        if version <= FORMAT_VERSION:
            config = config_from_json(description["config"])
            shapes = _variable_shapes(config)
            crc, source = description["checksum"], description["source"]
            # Folders of older versions have none.
            run_defaults = run_defaults_from_json(description.get("inference", {}))
    except Exception as error:  # whatever wrong names, types and numbers lead to
        raise InputError(f"{config_file}: damaged ({first_line(error)}); convert the model again") from error
    if version > FORMAT_VERSION:
        raise InputError(f"{config_file}: format_version {version} is newer than this program; update clipvis-jax")
    wait_for_all("model folder opened")  # orbax waits too, but not for any time
    weights = folder / hub.WEIGHTS
    if weights.is_file():
        _, clip_vars, params = from_state_dict(read_state_dict(weights), source=str(weights), config=config)
        variables: Variables = {"clip_vars": clip_vars, "params": params}
    else:
        weights = folder / "variables"
        variables = _load_variables(weights, shapes)
    # Neither format notices when a value has changed.
    if checksum(variables) != crc:
        raise InputError(f"{weights}: damaged (another checksum); convert the model again")
    try:
        tokenizer = load_tokenizer(folder / "tokenizer", context_length=config.text.context_length)
    except InputError as error:
        raise InputError(f"{error}; convert the model again") from error
    _check_vocabulary(tokenizer, config.text)
    _check_manifest(folder)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
    return ModelFolder(config, variables["clip_vars"], variables["params"], tokenizer, source, run_defaults)


def _load_variables(folder: Path, shapes: dict[str, Any]) -> Variables:
    """Read what orbax wrote.

    Raises:
        InputError: It is missing or damaged, or does not fit the model.
    """
    path = folder.absolute()  # orbax takes no other
    try:
        # Before they are read: a small file may stand for an array of any size.
        found = jax.tree.map(lambda leaf: leaf.shape, ocp.metadata(path).metadata)
        _check_bytes(path, shapes)
        variables = ocp.load(path) if found == shapes else None
    except InputError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for missing and damaged files
        raise InputError(f"{folder}: damaged ({first_line(error)}); convert the model again") from error
    if variables is None or jax.tree.map(np.shape, variables) != shapes:
        raise InputError(f"{folder.parent}: the variables do not fit config.json; convert the model again")
    return variables


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a model folder but its parameters and its manifest."""
    files = [folder / "config.json", *sorted(path for path in (folder / "tokenizer").rglob("*") if path.is_file())]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _check_manifest(folder: Path) -> None:
    """Refuse changed sizes or tokens: most would give other tracks or names without an error."""
    path = folder / MANIFEST
    if not path.exists():
        warnings.warn(
            f"{folder}: has no {MANIFEST}, as folders of older versions, so changed files go unnoticed; convert the "
            "model again",
            stacklevel=3,
        )
        return
    expected = read_json(path, dict[str, str], "convert the model again")
    found = _digests(folder)
    for name in sorted(expected | found):
        if expected.get(name) != found.get(name):
            what = "was removed" if name not in found else "was added" if name not in expected else "was changed"
            raise InputError(
                f"{folder / name}: {what} since the model was written; convert the model again, or delete {MANIFEST} "
                "if that is meant"
            )


def _variable_shapes(config: ClipVisConfig) -> dict[str, Any]:
    """Return the shape of every variable of a model, without computing any."""
    return jax.tree.map(np.shape, {"clip_vars": clip_shapes(config), "params": decoder_shapes(config)})


def _check_bytes(path: Path, shapes: dict[str, Any]) -> None:
    """Refuse configurations of much more than the files hold: zeros are compressed to next to nothing."""
    needed = 2 * sum(math.prod(shape) for shape in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple)))
    there = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if needed > _MOST_COMPRESSED * there + 2**26:
        raise InputError(f"{path}: has {there} bytes, but config.json asks for {needed}; convert the model again")


def _check_vocabulary(tokenizer: ClipTokenizer, text: TextConfig) -> None:
    """Refuse a tokenizer of another text encoder: its ids would be other words, and its end token not the last id."""
    if tokenizer.vocab_size != text.vocab_size:
        raise InputError(
            f"tokenizer: has {tokenizer.vocab_size} entries, but the text encoder {text.vocab_size}; give the "
            "tokenizer that the model was trained with"
        )


def _nearest_folder(path: Path) -> Path:
    """Return the deepest folder of a path that exists."""
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside a model's that goes with the block; the first process makes and removes it.

    Its name follows from the model's, so that two conversions to one place meet in its lock, and the next one removes
    what a killed one left.
    """
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    path = _nearest_folder(folder.parent) / f".clipvis-{name}"
    if jax.process_index() != 0:
        yield path
        return
    if path.is_symlink() or (path.exists() and path.stat().st_uid != os.geteuid()):
        raise InputError(f"{path}: was put there by somebody else; remove it, or choose another folder")
    try:
        with locked_folder(path, who="another process", place=folder):
            try:
                if (path / "old").exists() and not folder.exists():
                    (path / "old").rename(folder)  # it was killed between the two renames of ``_move_into_place``
                _empty(path)
                yield path
            finally:
                # The lock goes last: whoever comes in between begins in an empty folder.
                _empty(path)
                (path / LOCK).unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            path.rmdir()


def _empty(folder: Path) -> None:
    """Remove all but the lock, as far as that can be done."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _move_into_place(new: Path, folder: Path, *, old: Path) -> None:
    """Give a folder its name, in one step where the system can.

    Elsewhere what had it before is moved to ``old``, and back if anything goes wrong.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and exchange(new, folder):
        return
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _save_variables(path: Path, variables: Variables) -> None:
    """Write arrays by orbax.

    Raises:
        OSError: They cannot be written.
    """
    try:
        # In a thread of its own, and the end of the block waits for it: Ctrl-C, which comes to the main thread alone,
        # would leave orbax's threads writing into a folder that is being removed.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(ocp.save, path, variables).result()
    except ValueError as error:
        # This is how tensorstore reports the system's errors.
        if match := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
        raise
