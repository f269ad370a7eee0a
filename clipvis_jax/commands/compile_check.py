"""``clipvis compile-check``."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import jax
from tyro.conf import arg

from clipvis_jax.commands.provenance import versions
from clipvis_jax.commands.train import parse_with_config
from clipvis_jax.compilation.check import CompileReport, check_compilation
from clipvis_jax.compilation.gpu_profile import Kernels
from clipvis_jax.compilation.gpu_targets import is_gpu
from clipvis_jax.config import Experiment, config_to_json
from clipvis_jax.errors import InputError
from clipvis_jax.io.files import write_text
from clipvis_jax.io.terminal import print_lines, print_table
from clipvis_jax.training.task import ClipVisExperiment

USAGE = "usage: clipvis compile-check CONFIG --topology NAME [--json FILE] [OPTIONS]"

_ADVICE = "give more chips, a smaller --data.batch-size, --step.dtype bfloat16, or --step.remat layers or everything"


@dataclasses.dataclass(frozen=True)
class CompileCheckOptions:
    """Compile the training step for TPUs or GPUs, without any, and tell what it needs of each.

    Needs neither weights nor data, but a compiler: for TPUs libtpu (pip install 'clipvis-jax[tpu]') and some minutes,
    for GPUs JAX's CUDA plugin (pip install 'clipvis-jax[gpu-check]') and a minute. All figures are the compiler's own;
    nothing is run.

    For example:
      clipvis compile-check lvis_r50 --topology h100:8 --data.batch-size 8 --step.dtype bfloat16 --profile True
      clipvis compile-check configs/lvis_r50.py --topology v5e:16x16 --data.batch-size 256 --step.dtype bfloat16
    """

    topology: Annotated[str, arg(metavar="NAME")]
    """Kind and arrangement of chips: v5e:2x4 (8 chips), v5e:16x16, v4:8x8x8 (512 chips, 1024 cores), v6e:16x16; or kind
    and number of GPUs of one machine: a100:8, h100:8, h200:8, b200:8."""
    profile: bool = False
    """Print where the kernels of a GPU's program are, by part of the model and by kind; --json has it in any case."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the figures to this file as well."""
    effort: Literal["full", "least"] = "full"
    """Effort of the compiler. The least is several times quicker, and may state more memory than the program needs."""


@dataclasses.dataclass(frozen=True)
class CompileCheck:
    """Compile a training step for TPUs or GPUs, without any."""

    path: Path
    options: CompileCheckOptions
    experiment: Experiment

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Read a configuration, and the options with its settings as defaults.

        Raises:
            InputError: The configuration or a setting cannot be used.
            SystemExit: The options cannot be parsed (code 2), or help was asked for (code 0).
        """
        return cls(*parse_with_config(arguments, CompileCheckOptions, USAGE, prog="clipvis compile-check"))

    def run(self) -> None:
        """Run ``clipvis compile-check``.

        Raises:
            InputError: Topology or settings cannot be used, libtpu is missing, or the step does not fit into the chips.
        """
        # Before anything is computed: on a machine with a TPU, the TPU is left alone.
        jax.config.update("jax_platforms", "cpu")
        if self.options.effort == "least":
            # The older setting, JAX_EXEC_TIME_OPTIMIZATION_EFFORT, is gone since jax 0.11.1.
            jax.config.update("jax_optimization_level", "O1")
        if not isinstance(self.experiment, ClipVisExperiment):
            raise InputError(f"{self.path}: is no training of the decoders; give one such as configs/lvis_r50.py")
        if self.options.profile and not is_gpu(self.options.topology):
            raise InputError("--profile: is there for GPUs alone; leave it out, or give --topology h100:8")
        report = check_compilation(self.experiment, self.options.topology)
        print_lines(*format_report(report).splitlines())
        if self.options.profile and report.kernels is not None:
            _print_profile(report.kernels)
        if self.options.json is not None:
            content = dataclasses.asdict(report) | {
                "fits": report.memory.fits,
                "config_file": self.path.name,
                "config": config_to_json(self.experiment),
                "versions": versions(),
            }
            write_text(self.options.json, json.dumps(content, indent=2) + "\n")
        if not report.memory.fits:
            raise InputError(f"{self.path.name}: does not fit into {report.chip} on {report.topology}; {_ADVICE}")


def format_report(report: CompileReport) -> str:
    """Write a report as a table."""
    memory = report.memory
    rows: list[tuple[str, Any]] = [
        ("chips", f"{report.num_chips} x {report.chip} ({report.topology})"),
        ("images", f"{report.batch_size} in the global batch, {report.batch_size / report.num_chips:g} per chip"),
        ("", "per chip:"),
    ]
    if memory.fits:
        rows += [
            ("arguments", _gib(memory.arguments)),
            ("results", _gib(memory.results)),
            ("temporaries", _gib(memory.temporaries)),
            ("program", _gib(memory.program)),
        ]
    rows += [("memory in all", f"{_gib(memory.total)}{_verdict(report)}")]
    rows += [("products", f"{report.matmul_flops / 1e12:.3f} TFLOP in matrix products and convolutions")]
    if report.compiler_flops is not None:  # compilers for GPUs count nothing
        rows += [
            ("compiler", f"{report.compiler_flops:.4g} FLOP, {report.bytes_accessed or 0:.4g} bytes accessed"),
            ("", "(the compiler counts one round of every loop)"),
        ]
    if report.kernels is not None:
        rows += [("kernels", f"{sum(row.executions for row in report.kernels):,} a step, loops with all their rounds")]
    for found in report.collectives or ():
        rows.append((found.kind, f"{found.executions} ({found.instructions} in the program), {_mib(found.size)}"))
    if report.collectives == ():
        rows.append(("collectives", "none"))
    rows.append(("time", f"traced in {report.trace_seconds:.0f} s, compiled in {report.compile_seconds:.0f} s"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)


def _print_profile(kernels: Sequence[Kernels]) -> None:
    rows = [
        (row.part, row.kind, f"{row.executions:,}", f"{row.bytes / 1e9:.2f}", f"{row.estimated_us:,.0f}")
        for row in kernels
    ]
    print_table(
        "Kernels of a step on each GPU",
        ["part", "kind", "kernels", "GB", "us"],
        rows,
        left=["part", "kind"],
        caption="GB: what they read and write, look-ups with the whole of what they look into. us: XLA's estimate of "
        "loop fusions alone (element by element, look-ups): good for comparing forms of one computation, no times. "
        "Nothing is tuned, since there is no GPU.",
    )


def _verdict(report: CompileReport) -> str:
    memory = report.memory
    if memory.limit is None:
        return ""
    difference = memory.limit - memory.total
    verdict = f"fits, {_gib(difference)} to spare" if memory.fits else f"does not fit, {_gib(-difference)} too much"
    return f" of {_gib(memory.limit)}: {verdict}"


def _gib(size: int | None) -> str:
    return f"{(size or 0) / 2**30:.2f} GiB"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
