"""Where arrays live: the mesh of devices, and which axis of what is sharded over it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clipvis_jax.errors import InputError
from clipvis_jax.loop.path_rules import apply_rules

BATCH_AXES = ("data", "fsdp")
"""A batch is sharded over both axes of the mesh; parameters, if at all, over ``fsdp``."""

PARAMETER_RULES: tuple[tuple[str, P], ...] = (
    (r".*norm/(scale|bias)", P()),
    (r"query_decoder/(object|iou)_head/layer2/kernel", P("fsdp", None)),
    (r"pixel_decoder/(input\d_conv|lateral_conv|output_conv|mask_features)/kernel", P(None, None, None, "fsdp")),
    (r".*/kernel", P(None, "fsdp")),
    (r".*/bias", P()),
    (r"query_decoder/(query_feature|query_position|level_embedding)", P(None, "fsdp")),
    (r"pixel_decoder/level_embedding", P(None, "fsdp")),
)
"""Matrices are sharded along their outputs; vectors, and outputs of one or two numbers, are replicated."""


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices, by default all of them, as a mesh (``data``, ``fsdp``).

    They stand in the order of their processes, so that a process's part of a batch is a stretch of it: an image's
    place in the batch, on which random draws hang, must not depend on how chips are wired.

    Args:
        fsdp: Over how many devices parameters and optimiser state are sharded; 1 keeps a copy on each.
        devices: The devices.

    Raises:
        InputError: ``fsdp`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"fsdp {fsdp}: must divide the number of devices, which is {len(devices)}")
    shape = (len(devices) // fsdp, fsdp)
    # Not jax.make_mesh, which goes round the chips of a pod as their network does, in and out of processes.
    ordered = np.array(sorted(devices, key=lambda device: (device.process_index, device.id)))
    return Mesh(ordered.reshape(shape), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Keep a copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shard the first axis over all devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """Place every parameter by ``PARAMETER_RULES``.

    Raises:
        InputError: A parameter cannot be sharded over as many devices as the mesh asks for.
        ValueError: The rules do not cover the parameters.
    """
    specs = apply_rules(params, PARAMETER_RULES)
    fsdp = mesh.shape["fsdp"]

    def place(path: jax.tree_util.KeyPath, leaf: Any, spec: P) -> NamedSharding:
        for axis, mesh_axis in enumerate(spec):
            if mesh_axis is not None and leaf.shape[axis] % fsdp:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise InputError(f"fsdp {fsdp}: {name} of shape {leaf.shape} cannot be sharded over {fsdp} devices")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, params, specs)


def optimizer_shardings(mesh: Mesh, optimizer: optax.GradientTransformation, opt_state: Any, params: Any) -> Any:
    """Place the optimiser's state: moments with their parameters, counters everywhere."""
    return optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_state,
        parameter_shardings(mesh, params),
        transform_non_params=lambda _: replicated(mesh),
    )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Put a process's part of the global batch (NumPy arrays) on its devices.

    Raises:
        InputError: The devices do not divide the batch.
    """
    sharding = batch_sharding(mesh)
    devices = mesh.local_mesh.size

    def put(x: np.ndarray) -> jax.Array:
        if x.shape[0] % devices:
            raise InputError(f"batch of {x.shape[0]} images: must be a multiple of the {devices} devices of a process")
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, batch)
