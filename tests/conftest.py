"""Strict settings for all tests: run-time checks of types and shapes, eight virtual devices."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu" if os.environ.get("CLIPVIS_TEST_PLATFORM") is None else "")
# Threads of XLA. By default as many as cores, all of which virtual devices that wait for each other may take up.
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

# Structs stay out of the hook: it would check them inside JAX's tree functions, where leaves are placeholders.
_UNCHECKED = {"structs", "train_state", "cli"}
_PACKAGE = Path(__file__).parent.parent / "clipvis_jax"
install_import_hook(
    [
        ".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts)
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.stem not in _UNCHECKED | {"__init__"} and path.parent.name not in ("commands", "configs")
    ],
    "beartype.beartype",
)

import collections
import functools
import logging
import signal
import sys

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from safetensors.numpy import load_file

# A shell in the background starts its commands with Ctrl-C ignored, and they would hand that on to those under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiled programs, shared by workers and runs. With a limit of its size JAX locks the folder while it writes.
jax.config.update("jax_compilation_cache_dir", str(_PACKAGE.parent / "build" / "test-programs"))
jax.config.update("jax_compilation_cache_max_size", 2**32)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Compiling takes most of the time of the tests. Only what compares numbers of whole models, or computes for long, is
# compiled as for users.
_OPTIMIZED = ("parity", "golden", "test_bundled.py")


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(request):
    """Switch most of the compiler's optimisations off or on."""
    is_quick = not any(name in str(request.path.relative_to(Path(__file__).parent)) for name in _OPTIMIZED)
    if is_quick != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", is_quick)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(is_quick))  # for processes that tests start
        jax.clear_caches()  # of functions that several modules share


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Begin with the files that have the most slow tests, lest one worker be busy long after the other."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


GOLDENS = Path(__file__).parent / "goldens"
FAMILIES = ("rn", "convnext")


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """Load an .npz of the goldens."""
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        return dict(arrays)


@functools.cache
def tiny_state_dict(family: str) -> dict[str, np.ndarray]:
    """Load the weights of a tiny model under the authors' names, as float32."""
    arrays = load_file(GOLDENS / f"tiny_{family}.safetensors")
    return {key: x.astype(np.float32) if x.dtype == np.float16 else x for key, x in arrays.items()}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def globals_before(tmp_path_factory):
    """Keep the user's cache out of the tests, and note what the command line sets for its whole process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio", "huggingface_hub")}
        yield sys.unraisablehook, levels, jax.config.jax_compilation_cache_dir


@pytest.fixture(autouse=True)
def restored_globals(globals_before):
    """Put back what the command line sets, lest pytest miss files that a later test leaves open."""
    hook, levels, folder = globals_before

    def restore():
        sys.unraisablehook = hook
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if jax.config.jax_compilation_cache_dir != folder:
            jax.config.update("jax_compilation_cache_dir", folder)
            reset_cache()

    restore()  # a fixture of the whole module may have run a command
    yield
    restore()
