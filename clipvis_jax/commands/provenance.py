"""What a result rests on: versions, code and device."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

import jax

import clipvis_jax
from clipvis_jax.version import __version__


def versions() -> dict[str, str]:
    """Return the versions of what numbers may depend on; of this package also a digest of its code."""
    libraries = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "av", "pycocotools", "faster-coco-eval")
    return {"clipvis_jax": __version__, "code": _digest_code(), "python": platform.python_version()} | {
        name: version(name) for name in libraries
    }


def device() -> str:
    """Name the devices that JAX computes on, such as "8 x TPU v5 lite"."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}"


def _digest_code() -> str:
    """Digest the package's modules: twelve hexadecimal digits of SHA-256."""
    package = Path(clipvis_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
