"""Memory that a process keeps: on CPUs alone."""

from unittest.mock import Mock

import jax
import pytest

from clipvis_jax.loop import host_memory


@pytest.mark.parametrize(("platform", "is_tuned"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_memory_is_kept_on_cpus_alone(monkeypatch, platform, is_tuned):
    library = Mock()
    monkeypatch.setattr(host_memory, "_glibc", lambda: library)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    host_memory.keep_freed_memory()
    assert library.mallopt.called == is_tuned
