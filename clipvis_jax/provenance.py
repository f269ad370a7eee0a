"""What a result rests on: versions and device."""

import platform
from importlib.metadata import version

import jax

from clipvis_jax.version import __version__


def versions() -> dict[str, str]:
    """Return the versions of what numbers may depend on."""
    libraries = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "pycocotools")
    return {"clipvis_jax": __version__, "python": platform.python_version()} | {
        name: version(name) for name in libraries
    }


def device() -> str:
    """Name the devices that JAX computes on, such as "8 x TPU v5 lite"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"
