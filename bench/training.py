"""Time and peak memory of the training step at the published size, and of both matchers.

    python -m bench.training                  RN50, 1024x1024, batch 1, 9 layers, 12,544 points
    python -m bench.training RN50 --targets 20 --batch 2 --remat layers
    python -m bench.training matching         both matchers on a step's assignment problems

Random weights. Each figure comes from a process of its own; the time in brackets is that of the processor, all cores
together. Memory is the process's, and the device's where it keeps count (GPUs, TPUs; "-" on CPUs). Products are those
of matrices and convolutions in a second, with those done twice because of --remat. Prints Markdown.
"""

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import zoom

from clipvis_jax.loop.host_memory import give_back_freed_memory, keep_freed_memory
from clipvis_jax.loop.matmul_flops import count_matmul_flops
from clipvis_jax.loop.sharding import make_mesh, put_batch
from clipvis_jax.models.clipvis import ClipVis, ClipVisConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.losses import LossConfig
from clipvis_jax.training.matching import MatchingConfig, match
from clipvis_jax.training.optimizer import OptimizerConfig, make_optimizer
from clipvis_jax.training.step import TrainingConfig, init_state, make_train_step
from clipvis_jax.training.structs import Targets, TrainingBatch
from clipvis_jax.weights.published_sizes import BACKBONES

STEPS = 3


def random_batch(batch, size, targets, slots):
    """Draw smooth images, and blobs as instances."""
    rng = np.random.default_rng(0)
    images = zoom(rng.integers(0, 256, (batch, 16, 16, 3)).astype(np.float32), (1, size / 16, size / 16, 1), order=1)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    masks = np.zeros((batch, slots, size, size), bool)
    for image in range(batch):
        for target in range(targets):
            center, radii = rng.uniform(0.1, 0.9, 2), rng.uniform(0.03, 0.25, 2)
            masks[image, target] = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1
    valid = np.broadcast_to(np.arange(slots) < targets, (batch, slots))
    return TrainingBatch(
        images_u8=images.astype(np.uint8),
        targets=Targets(masks_packed=np.packbits(masks, axis=-1), valid=valid, absent=np.zeros_like(valid)),
    )


def measure_step(options):
    """Return a row of the table."""
    config = ClipVisConfig(
        backbone=BACKBONES[options.what], query_decoder=QueryDecoderConfig(num_layers=options.layers)
    )
    model = ClipVis(config)
    optimizer, mesh = make_optimizer(OptimizerConfig()), make_mesh(devices=jax.devices()[:1])
    settings = TrainingConfig(
        losses=LossConfig(matching=MatchingConfig(method=options.matching)),
        accumulation=options.accumulation,
        remat=options.remat,
        dtype=options.dtype,
    )
    keep_freed_memory()
    clip_vars = jax.jit(lambda key: {"trunk": model.init_clip(key)["trunk"]})(jax.random.key(1))
    state = init_state(model, optimizer, mesh, seed=0)
    batch = put_batch(random_batch(options.batch, options.size, options.targets, options.slots), mesh)
    start = time.perf_counter()
    traced = make_train_step(model, settings, optimizer, mesh).trace(state, clip_vars, batch)
    flops = count_matmul_flops(traced.jaxpr)
    step = traced.lower().compile()
    compile_seconds = time.perf_counter() - start
    give_back_freed_memory()
    temporary = step.memory_analysis().temp_size_in_bytes / 2**30
    seconds, processor_seconds = [], []
    for _ in range(STEPS):
        start, processor_start = time.perf_counter(), time.process_time()
        state, metrics = step(state, clip_vars, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
        processor_seconds.append(time.process_time() - processor_start)
    assert np.isfinite(metrics.total_loss)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    device_peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    cells = [
        f"{options.what}, {options.layers} layers, {options.size}, batch {options.batch}",
        options.dtype,
        f"{options.targets} of {options.slots}",
        options.remat,
        f"{min(seconds):.3g} s ({min(processor_seconds):.3g} s)",
        f"{options.batch / min(seconds):.3g}",
        f"{flops / min(seconds) / 1e12:.3g} TFLOP/s",
        f"{peak:.1f} GiB",
        "-" if device_peak is None else f"{device_peak / 2**30:.1f} GiB",
        f"{temporary:.1f} GiB",
        f"{compile_seconds:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def measure_matching():
    """Return rows: milliseconds for ten layers of a batch, by number of targets and slots."""
    rng = np.random.default_rng(0)
    rows = []
    for batch, targets, slots in ((1, 10, 20), (1, 20, 100), (2, 100, 100), (16, 20, 100)):
        costs = jnp.asarray(rng.normal(size=(10, batch, 100, slots)), jnp.float32)
        valid = jnp.broadcast_to(jnp.arange(slots) < targets, (10, batch, slots))
        cells = []
        for method in ("device", "host"):
            solve = jax.jit(lambda costs, valid, method=method: match(costs, valid, method))
            jax.block_until_ready(solve(costs, valid))
            start = time.perf_counter()
            for _ in range(5):
                jax.block_until_ready(solve(costs, valid))
            cells.append(f"{(time.perf_counter() - start) / 5 * 1e3:.1f} ms")
        rows.append(f"| {batch} | {targets} of {slots} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="RN50", choices=[*BACKBONES, "matching"])
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--targets", type=int, default=10, help="instances per image")
    parser.add_argument("--slots", type=int, default=10, help="instances after padding")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--remat", default="none", choices=["none", "layers", "everything"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--matching", default=MatchingConfig().method, choices=["device", "host"])
    parser.add_argument("--here", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.what == "matching":
        print("| batch | targets | device | host |\n|---|---|---|---|")
        print(measure_matching())
    elif options.here:
        print(measure_step(options), flush=True)
    else:
        print(
            "| step | type | targets | remat | time | images/s | products | process's peak | device's peak "
            "| temporary | compilation |\n" + "|---" * 11 + "|"
        )
        subprocess.run([sys.executable, "-m", "bench.training", *sys.argv[1:], "--here"], check=True)


if __name__ == "__main__":
    main()
