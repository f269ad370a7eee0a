"""``train.py`` and ``clipvis train``."""

import dataclasses
import inspect
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.conf import arg

from clipvis_jax.distributed import DistributedConfig
from clipvis_jax.errors import InputError
from clipvis_jax.version import __version__

if TYPE_CHECKING:
    from clipvis_jax.config import Experiment
    from clipvis_jax.pretraining.clip_task import ClipTask
    from clipvis_jax.training.clipvis_task import ClipVisTask

Options = TypeVar("Options")

USAGE = """usage: train.py CONFIG --workdir DIR (--clip DIR | --init-from DIR) [--data-root DIR] [OPTIONS]
       train.py configs/shapes_clip.py --workdir DIR [OPTIONS]     (pretrains a CLIP, from random weights)

CONFIG is a file such as configs/lvis_r50.py; 'train.py CONFIG --help' lists the options, with every setting of the
configuration among them."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Where a training lives and begins.

    A run that was stopped, by Ctrl-C, SIGTERM or a power cut, goes on where it was: give the same command again. Where
    it begins, the first that applies: (1) the newest whole checkpoint in --workdir; (2) that of --resume; (3) the
    decoders of --init-from; (4) random decoders, with the CLIP of --clip.
    """

    workdir: Annotated[Path, arg(metavar="DIR")]
    """Folder of the run: checkpoints, log.jsonl, tensorboard, pictures, evaluation, and model at the end."""
    clip: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Model folder whose CLIP is used, under new decoders; 'clipvis convert --clip' makes one."""
    init_from: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Model folder to start from, decoders included (fine-tuning)."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of another run, to go on from its newest checkpoint in this --workdir."""
    data_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of all data sets, for data sets given by name."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes train together; --workdir must be a folder that all of them see."""


@dataclasses.dataclass(frozen=True)
class Train:
    """A training: its configuration file, where it lives and begins, and what is trained."""

    path: Path
    options: TrainOptions
    experiment: "Experiment"

    def run(self) -> None:
        """Run the training.

        Raises:
            InputError: An option, the model, the data or the folder of the run cannot be used.
        """
        options = self.options
        from clipvis_jax.distributed import start_processes
        from clipvis_jax.loading import enable_compilation_cache
        from clipvis_jax.provenance import device, versions
        from clipvis_jax.training.host_memory import keep_freed_memory
        from clipvis_jax.training.loop import train

        keep_freed_memory()
        start_processes(options.distributed)
        enable_compilation_cache()
        task = open_task(self.experiment, options)
        settings = json.loads(json.dumps(dataclasses.asdict(self.experiment), default=str))
        description = {"config_file": self.path.name, "config": settings, **task.notes(), "versions": versions()}
        check_same_run(options.workdir, description)
        is_complete = train(
            task,
            self.experiment.loop,
            options.workdir,
            resume_from=options.resume,
            source={"trained_by": f"clipvis_jax {__version__}", "device": device(), **description},
        )
        if is_complete:
            print(f"trained {task.num_steps} steps; wrote {options.workdir / 'model'}")
        else:
            print("stopped; the same command goes on from here")


def open_task(experiment: "Experiment", options: TrainOptions) -> "ClipVisTask | ClipTask":
    """Make ready what is trained.

    Raises:
        InputError: The options do not say where to begin, or model or data cannot be used.
    """
    from clipvis_jax.pretraining.clip_task import ClipExperiment, ClipTask
    from clipvis_jax.training.clipvis_task import ClipVisTask

    if isinstance(experiment, ClipExperiment):
        if options.clip is not None or options.init_from is not None:
            raise InputError("the pretraining of CLIP begins with random weights; leave --clip and --init-from out")
        return ClipTask(experiment)
    if (options.clip is None) == (options.init_from is None):
        raise InputError("give either --clip, for new decoders, or --init-from, to go on with a model's decoders")
    folder = options.clip or options.init_from
    assert folder is not None
    return ClipVisTask(experiment, folder, init_decoders=options.clip is not None, data_root=options.data_root)


def parse_train(argv: Sequence[str]) -> Train:
    """Read a configuration, and the options with its settings as defaults.

    Raises:
        InputError: The configuration cannot be used.
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    path, options, experiment = parse_with_config(argv, TrainOptions, USAGE, prog="train.py")
    return Train(path, options, experiment)


def parse_with_config(
    argv: Sequence[str], options: type[Options], usage: str, *, prog: str
) -> tuple[Path, Options, "Experiment"]:
    """Read the command line of a command whose first argument is a configuration; its settings become options.

    Raises:
        InputError: The configuration cannot be used.
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    if not argv or argv[0].startswith("-"):
        is_help = list(argv[:1]) in (["-h"], ["--help"])
        print(usage, file=sys.stdout if is_help else sys.stderr)
        raise SystemExit(0 if is_help else 2)
    from clipvis_jax.config import load_config

    path = Path(argv[0])
    experiment = load_config(path)
    # The settings stand beside the options, not below a prefix of their own.
    merged = dataclasses.make_dataclass(
        "Merged",
        [
            ("options", Annotated[options, arg(name="")]),
            ("experiment", Annotated[type(experiment), arg(name="")], dataclasses.field(default=experiment)),
        ],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        merged,
        prog=f"{prog} {path}",
        description=inspect.cleandoc(options.__doc__ or ""),
        args=list(argv[1:]),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return path, parsed.options, parsed.experiment


def check_same_run(workdir: Path, description: dict[str, Any]) -> None:
    """Compare a run with the one whose folder it goes on in, and note it there.

    Warns:
        UserWarning: Settings or versions are other ones.

    Raises:
        InputError: CLIP or the data are other ones.
    """
    import jax

    from clipvis_jax.files import atomic_path, prepare_output_dir

    note = workdir / "run.json"
    if note.is_file():
        try:
            earlier = json.loads(note.read_text())
        except ValueError as error:
            raise InputError(f"{note}: damaged ({error}); delete it to go on all the same") from error
        for name in ("clip_sha256", "dataset"):
            if earlier.get(name) != description.get(name):
                raise InputError(
                    f"{workdir}: is a run with another {'CLIP' if name == 'clip_sha256' else 'data set'}; "
                    "choose another --workdir"
                )
        if changed := sorted(_differences(earlier, description)):
            warnings.warn(f"{workdir}: goes on with other settings than it began: {', '.join(changed)}", stacklevel=2)
    if jax.process_index() == 0:
        prepare_output_dir(workdir)
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n")


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Name the fields of two JSON values that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = a.keys() | b.keys()
        return [x for name in names for x in _differences(a.get(name), b.get(name), f"{prefix}.{name}".lstrip("."))]
    return [] if a == b else [prefix]
