"""``clipvis train`` and ``train.py``."""

import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import jax
import tyro
from tyro.conf import arg

from clipvis_jax.commands.options import parse_options
from clipvis_jax.commands.provenance import device, versions
from clipvis_jax.config import CONFIGS, Experiment, config_to_json, load_config
from clipvis_jax.distributed import DistributedConfig, start_processes
from clipvis_jax.errors import InputError
from clipvis_jax.inference.loading import enable_compilation_cache
from clipvis_jax.io.terminal import print_lines
from clipvis_jax.loop.host_memory import keep_freed_memory
from clipvis_jax.loop.loop import train
from clipvis_jax.pretraining.task import ClipExperiment, ClipTask
from clipvis_jax.training.optimizer import scale_to_batch
from clipvis_jax.training.task import ClipVisExperiment, ClipVisTask
from clipvis_jax.version import __version__

Options = TypeVar("Options")

USAGE = """usage: clipvis train CONFIG --workdir DIR [--clip DIR] [--init-from DIR] [--data-root DIR] [OPTIONS]
       clipvis train shapes_clip --workdir DIR [--init-from DIR] [OPTIONS]     (pretrains a CLIP)"""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train the decoders under a frozen CLIP, or pretrain a CLIP.

    A run that was stopped, by Ctrl-C, SIGTERM or a power cut, goes on where it was: give the same command again. Where
    it begins, the first that applies: (1) the newest whole checkpoint in --workdir; (2) that of --resume; (3) the
    decoders of --init-from, with its own CLIP or that of --clip; (4) random decoders, with the CLIP of --clip. The
    pretraining of CLIP begins with the CLIP of --init-from, or with random weights.
    """

    workdir: Annotated[Path, arg(metavar="DIR")]
    """Folder of the run: checkpoints, log.jsonl, tensorboard, pictures, evaluation, and model at the end."""
    clip: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Model folder whose CLIP is used, under new decoders or those of --init-from; 'clipvis convert --clip' makes
    one. Not for the pretraining of CLIP."""
    init_from: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Model folder to start from, decoders included (fine-tuning); --query-decoder.num-queries may be larger than its
    own, and the queries that are added begin random. The pretraining of CLIP leaves its decoders as they are."""
    resume: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of another run, to go on from its newest checkpoint in this --workdir."""
    data_root: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of all data sets, for data sets given by name."""
    images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Image folder of --dataset, for one given as an annotation file."""
    evaluation_images: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Image folder of --evaluation.dataset, for one given as an annotation file."""
    scale_optimizer: Annotated[
        Literal["linear", "sqrt"] | None, arg(metavar="{linear,sqrt}", help_behavior_hint="")
    ] = None
    """For another --data.batch-size than the configuration's: adapt steps and warm-up, for the same number of epochs,
    and the learning rate, which grows with the batch or with its square root."""
    profile: Annotated[str | None, arg(metavar="FIRST:END", help_behavior_hint="")] = None
    """Trace these steps with JAX's profiler, the end left out, into profile/ of --workdir, for TensorBoard: 10:13."""
    distributed: DistributedConfig = DistributedConfig()
    """Several processes train together; --workdir must be a folder that all of them see."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the decoders under a frozen CLIP, or pretrain a CLIP."""

    path: Path
    options: TrainOptions
    experiment: Experiment

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Read a configuration, and the options with its settings as defaults.

        Raises:
            InputError: The configuration or a setting cannot be used.
            SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
        """
        path, options, experiment = parse_with_config(arguments, TrainOptions, USAGE, prog="clipvis train")
        if options.scale_optimizer is not None:
            experiment = _scale_optimizer(path, experiment, options.scale_optimizer)
        return cls(path, options, experiment)

    def run(self) -> None:
        """Run the training.

        Raises:
            InputError: An option, the model, the data or the folder of the run cannot be used.
        """
        options = self.options
        profile = None if options.profile is None else profiled_steps(options.profile)
        start_processes(options.distributed)
        keep_freed_memory()
        enable_compilation_cache()
        task = open_task(self.experiment, options)
        if isinstance(task, ClipVisTask) and task.scores_of is not None and jax.process_index() == 0:
            print_lines(f"scores while training are those of {task.scores_of} (--evaluation.limit)")
        settings = config_to_json(self.experiment)
        description = {"config_file": self.path.name, "config": settings, **task.notes(), "versions": versions()}
        is_complete = train(
            task,
            self.experiment.loop,
            options.workdir,
            resume_from=options.resume,
            description=description,
            source={"trained_by": f"clipvis_jax {__version__}", "device": device()},
            profile=profile,
        )
        if is_complete:
            print_lines(f"trained {task.num_steps} steps; wrote {options.workdir / 'model'}")
        elif self.experiment.loop.stop_after is None:
            print_lines("stopped; the same command goes on from here")
        else:
            print_lines("stopped; the same command with a later --loop.stop-after, or none, goes on from here")


def open_task(experiment: Experiment, options: TrainOptions) -> ClipVisTask | ClipTask:
    """Make ready what is trained.

    Raises:
        InputError: The options do not say where to begin, or model or data cannot be used.
    """
    if isinstance(experiment, ClipExperiment):
        if options.clip is not None:
            raise InputError(
                "--clip: is for decoders; the pretraining of CLIP begins with random weights, or with the CLIP of "
                "--init-from"
            )
        if options.images is not None or options.evaluation_images is not None:
            raise InputError(
                "--images, --evaluation-images: are for decoders; the pretraining of CLIP draws its images"
            )
        return ClipTask(experiment, options.init_from)
    if options.clip is None and options.init_from is None:
        raise InputError("give --clip, for new decoders, or --init-from, to go on with a model's decoders")
    return ClipVisTask(
        experiment,
        clip=options.clip,
        init_from=options.init_from,
        data_root=options.data_root,
        images=options.images,
        evaluation_images=options.evaluation_images,
    )


def profiled_steps(text: str) -> range:
    """Read a range of steps, FIRST:END, the end left out.

    Raises:
        InputError: It is none, or empty.
    """
    found = re.fullmatch(r"([1-9]\d{0,8}):([1-9]\d{0,8})", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise InputError(f"--profile {text}: give the first step and the first that is left out, such as 10:13")
    return range(int(found[1]), int(found[2]))


def _scale_optimizer(path: Path, experiment: Experiment, rule: Literal["linear", "sqrt"]) -> Experiment:
    """Adapt an experiment's optimiser, whose settings are for the batch size of the configuration, to its own."""
    if not isinstance(experiment, ClipVisExperiment):
        raise InputError("--scale-optimizer: is for trainings of the decoders; set the options of --optimizer yourself")
    batch_size = experiment.data.batch_size
    try:
        optimizer = scale_to_batch(
            experiment.optimizer, batch_size=batch_size, reference=load_config(path).data.batch_size, rule=rule
        )
    except ValueError as error:
        raise InputError(
            f"--scale-optimizer: batches of {batch_size} images leave too few steps ({error}); choose smaller ones"
        ) from error
    return dataclasses.replace(experiment, optimizer=optimizer)


def parse_with_config(
    argv: Sequence[str], options: type[Options], usage: str, *, prog: str
) -> tuple[Path, Options, Experiment]:
    """Read the command line of a command whose first argument is a configuration; its settings become options.

    Raises:
        InputError: The configuration or a setting cannot be used.
        SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
    """
    if not argv or argv[0].startswith("-"):
        is_help = list(argv[:1]) in (["-h"], ["--help"])
        explanation = (
            f"CONFIG is a Python file that defines 'config', or one that comes with the package: {', '.join(CONFIGS)}. "
            f"'{prog} CONFIG --help' lists the options, with every setting of the configuration among them."
        )
        if not is_help:
            print_lines(f"{prog}: error: no configuration given; it comes first", file=sys.stderr)
        text = f"{usage}\n\n{textwrap.fill(explanation, 120)}"
        print_lines(*text.splitlines(), file=sys.stdout if is_help else sys.stderr)
        raise SystemExit(0 if is_help else 2)
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
    parsed: Any = parse_options(
        merged,
        argv[1:],
        prog=f"{prog} {path}",
        description=inspect.cleandoc(options.__doc__ or ""),
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return path, parsed.options, parsed.experiment
