"""NVIDIA GPUs as XLA's compiler wants them described, so that programs can be compiled for one that is not there.

Source of the figures: the descriptions that XLA's own compiler tests use (SXM boards).
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from jax.experimental import topologies

from clipvis_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class _Gpu:
    description: str
    capability: int
    num_cores: int
    fpus_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    bandwidth: int
    l2_cache: int
    clock_ghz: float
    memory: int


_GPUS = {
    "a100": _Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 167936, 166912, 2039040000000, 41943040, 1.41, 85100068864),
    "h100": _Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 233472, 232448, 3352320000000, 52428800, 1.98, 84942979072),
    "h200": _Gpu("NVIDIA H200 141GB HBM3e", 9, 132, 128, 233472, 232448, 4800000000000, 52428800, 1.98, 151397597184),
    "b200": _Gpu("NVIDIA B200", 10, 148, 128, 233472, 232448, 7672320000000, 132644864, 1.965, 191514411008),
}

_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  shared_memory_per_core: {gpu.shared_memory_per_core}
  core_count: {gpu.num_cores} fpus_per_core: {gpu.fpus_per_core} clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.l2_cache} device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{gpu.description}"
"""
"""In protocol buffers' text format, as ``GpuTargetConfigProto``."""


def is_gpu(topology: str) -> bool:
    """Whether a topology is of GPUs, such as ``h100:8``."""
    return topology.partition(":")[0] in _GPUS


def gpu_devices(topology: str) -> tuple[Sequence[Any], int]:
    """Return GPUs of one machine, such as ``h100:8``, to compile for, and the bytes of memory of each.

    Raises:
        InputError: The number is missing, or JAX's CUDA plugin is not installed.
    """
    match = re.fullmatch(r"(\w+):([1-9]\d{0,2})", topology)
    if match is None:
        raise InputError(f"topology {topology}: give the number of GPUs, such as {topology.partition(':')[0]}:8")
    gpu = _GPUS[match[1]]
    try:
        target = _TARGET.format(gpu=gpu)
        found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{match[2]}")
    except Exception as error:  # JAX raises other kinds without any plugin than with one of another version
        raise InputError(
            "compiling for GPUs needs JAX's CUDA plugin of jax's own version; install it with pip install "
            "'clipvis-jax[gpu-check]'"
        ) from error
    return found.devices, gpu.memory
