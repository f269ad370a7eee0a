"""Compile the training step for TPUs or GPUs that are not there: what each needs, by the compiler's own numbers.

Only shapes are used; neither weights nor data nor a device are needed.
"""

import dataclasses
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from clipvis_jax.compilation.gpu_profile import Kernels, find_kernels
from clipvis_jax.compilation.gpu_targets import gpu_devices, is_gpu
from clipvis_jax.compilation.hlo_collectives import Collectives, find_collectives
from clipvis_jax.errors import InputError
from clipvis_jax.loop.matmul_flops import count_matmul_flops
from clipvis_jax.loop.sharding import make_mesh
from clipvis_jax.models.backbones import BACKBONES
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig, clip_shapes
from clipvis_jax.training.optimizer import make_optimizer
from clipvis_jax.training.step import abstract_state, check_batch, make_train_step
from clipvis_jax.training.structs import Targets, TrainingBatch
from clipvis_jax.training.task import ClipVisExperiment
from clipvis_jax.weights.published_sizes import TEXT_TOWERS

_EXAMPLES = "v5e:2x4, v5e:16x16, v4:8x8x8, v5p:4x4x4, v6e:16x16, a100:8, h100:8, h200:8 or b200:8"

_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
"""Keeps libtpu from asking around for the TPU of this machine, and from being alone on it; any type will do."""

_SHORT_OF_MEMORY = re.compile(
    r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)|Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
)
"""The compiler's words, of newer and older versions."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a chip's memory.

    Attributes:
        arguments: State, frozen CLIP and batch; the new state takes the old one's place.
        results: What does not take an argument's place.
        temporaries: All in between, at its highest.
        program: The program itself.
        total: All of them. Alone known if the program does not fit.
        limit: What programs may use, None if the compiler does not tell.
    """

    arguments: int | None
    results: int | None
    temporaries: int | None
    program: int | None
    total: int
    limit: int | None

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for everything."""
        return self.arguments is not None


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """What a training step needs of every chip.

    Attributes:
        topology: The chips' arrangement, as it was asked for.
        chip: The kind of chip.
        num_chips: Number of chips.
        batch_size: Images in the global batch.
        memory: What it takes up.
        matmul_flops: Operations in matrix products and convolutions, loops counted in full.
        compiler_flops: The compiler's count of all operations; of loops it counts one round.
        bytes_accessed: The compiler's count of bytes read and written; of loops it counts one round.
        collectives: What is sent between chips, by kind; None if the program does not fit.
        kernels: Of programs for GPUs, what they start, by part and kind; else None.
        trace_seconds: Time until the compiler had the program.
        compile_seconds: Time that the compiler took.
    """

    topology: str
    chip: str
    num_chips: int
    batch_size: int
    memory: Memory
    matmul_flops: float
    compiler_flops: float | None
    bytes_accessed: float | None
    collectives: tuple[Collectives, ...] | None
    kernels: tuple[Kernels, ...] | None
    trace_seconds: float
    compile_seconds: float


def topology_devices(topology: str) -> Sequence[Any]:
    """Return the chips of a TPU topology such as ``v5e:16x16``, to compile for.

    Raises:
        InputError: There is no such topology, or libtpu is not installed.
    """
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    # The two cores of these chips work as one device, as they do when JAX runs on them.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise InputError(f"topology {topology}: unknown ({reason}); give one such as {_EXAMPLES}") from error
    except RuntimeError as error:
        raise InputError(
            f"compiling for TPUs needs libtpu ({error}); install it with pip install 'clipvis-jax[tpu]'"
        ) from error


def check_compilation(experiment: ClipVisExperiment, topology: str) -> CompileReport:
    """Compile an experiment's training step for a topology of TPUs, or a machine with GPUs.

    Raises:
        InputError: The topology is unknown, libtpu or the CUDA plugin is missing, or chips do not divide the batch.
    """
    if is_gpu(topology):
        devices, memory_size = gpu_devices(topology)
        report = compile_step(experiment, devices, topology)
        return dataclasses.replace(report, memory=dataclasses.replace(report.memory, limit=memory_size))
    devices = topology_devices(topology)
    report = compile_step(experiment, devices, topology)
    if report.memory.limit is None:
        memory = dataclasses.replace(report.memory, limit=memory_limit(devices))
        report = dataclasses.replace(report, memory=memory)
    return report


def compile_step(experiment: ClipVisExperiment, devices: Sequence[Any], topology: str) -> CompileReport:
    """Compile an experiment's training step for devices, with arrays that are nothing but shapes.

    Raises:
        InputError: Devices do not divide the batch, or the experiment leaves the CLIP open.
    """
    model = model_of(experiment)
    optimizer = make_optimizer(experiment.optimizer)
    mesh = make_mesh(experiment.fsdp, devices)
    trunk = clip_shapes(model.config)["trunk"]
    batch = _abstract_batch(experiment)
    check_batch(batch, mesh, experiment.step.accumulation)
    step = make_train_step(model, experiment.step, optimizer, mesh)
    start = time.perf_counter()
    traced = step.trace(abstract_state(model, optimizer), {"trunk": trunk}, batch)
    lowered = traced.lower()
    traced_at = time.perf_counter()
    compiled, text, needed, limit = None, None, None, None
    with tempfile.TemporaryDirectory() as dump:
        options: dict[str, Any] = {}
        if devices[0].platform == "tpu":
            options = {"xla_dump_to": dump, "xla_dump_hlo_as_text": True}
        elif is_gpu(topology):
            options = {"xla_gpu_collect_cost_model_stats": True}
        try:
            compiled = lowered.compile(compiler_options=options)
            compiled_at = time.perf_counter()
            text = _program_text(compiled, Path(dump))
        except jax.errors.JaxRuntimeError as error:
            compiled_at = time.perf_counter()
            needed, limit = parse_out_of_memory(str(error))
            if needed is None:
                raise
    analysis = (compiled.cost_analysis() if compiled is not None else None) or {}
    return CompileReport(
        topology=topology,
        chip=devices[0].device_kind,
        num_chips=len(devices),
        batch_size=experiment.data.batch_size,
        memory=Memory(None, None, None, None, needed or 0, limit) if compiled is None else _memory(compiled),
        matmul_flops=count_matmul_flops(traced.jaxpr) / len(devices),
        compiler_flops=analysis.get("flops"),
        bytes_accessed=analysis.get("bytes accessed"),
        collectives=find_collectives(text) if text is not None else None,
        kernels=find_kernels(text) if text is not None and is_gpu(topology) else None,
        trace_seconds=traced_at - start,
        compile_seconds=compiled_at - traced_at,
    )


def _program_text(compiled: jax.stages.Compiled, dump: Path) -> str:
    """Return what was compiled as text, from the compiler's own notes if JAX cannot read it.

    Compiled for v6e, large steps have asynchronous operations of libtpu's that are unknown to the XLA inside jaxlib.
    """
    with suppress(jax.errors.JaxRuntimeError):
        if (text := compiled.as_text()) is not None:
            return text
    (note,) = dump.glob("*.after_optimizations.txt")
    return note.read_text(encoding="utf-8")


def model_of(experiment: ClipVisExperiment) -> ClipVis:
    """Return an experiment's model, its CLIP by name.

    Raises:
        InputError: The experiment leaves the CLIP open.
    """
    name = experiment.backbone
    if name is None:
        raise InputError(f"the configuration takes any CLIP; choose a backbone: {', '.join(BACKBONES)}")
    config = ClipVisConfig(BACKBONES[name], TEXT_TOWERS[name], experiment.pixel_decoder, experiment.query_decoder)
    return ClipVis(config)


def parse_out_of_memory(message: str) -> tuple[int | None, int | None]:
    """Read from the TPU compiler's message how many bytes a program needs at least, and how many it may use.

    Both are None if the message is another one.
    """
    match = _SHORT_OF_MEMORY.search(message)
    if match is None:
        return None, None
    units = {unit: 1024**power for power, unit in enumerate(["", "K", "M", "G", "T"])}
    needed, needed_unit, limit, limit_unit = (group for group in match.groups() if group is not None)
    return round(float(needed) * units[needed_unit]), round(float(limit) * units[limit_unit])


def memory_limit(devices: Sequence[Any]) -> int | None:
    """Return how many bytes of a chip's memory programs may use, None if the compiler does not tell.

    It tells when a program needs more, so it gets one that does.
    """
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    huge = jax.ShapeDtypeStruct((1024, 1024, 1024, 1024), jnp.uint8)
    try:
        jax.jit(lambda x: x + 1, in_shardings=sharding, out_shardings=sharding).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return parse_out_of_memory(str(error))[1]
    return None


def _memory(compiled: jax.stages.Compiled) -> Memory:
    analysis: Any = compiled.memory_analysis()
    arguments, temporaries = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    program = analysis.generated_code_size_in_bytes
    return Memory(arguments, results, temporaries, program, arguments + results + temporaries + program, None)


def _abstract_batch(experiment: ClipVisExperiment) -> TrainingBatch:
    data = experiment.data
    images, places, (height, width) = data.batch_size, data.max_instances, data.image_size

    def make() -> TrainingBatch:
        targets = Targets(
            masks_packed=jnp.zeros((images, places, height, width // 8), jnp.uint8),
            valid=jnp.zeros((images, places), bool),
            absent=jnp.zeros((images, places), bool),
        )
        return TrainingBatch(
            jnp.zeros((images, height, width, 3), jnp.uint8), targets, jnp.zeros((images, 2), jnp.int32)
        )

    return jax.eval_shape(make)
