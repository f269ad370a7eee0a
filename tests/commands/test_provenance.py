"""What a result rests on."""

from pathlib import Path

import pytest

from clipvis_jax.commands.provenance import versions


def test_the_digest_of_the_code_covers_every_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of another network, association or evaluation must not be taken for this one's."""
    before = versions()["code"]
    read = Path.read_bytes

    def edited(path: Path) -> bytes:
        return read(path) + (b"# edited" if path.parts[-2:] == ("models", "clipvis.py") else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)
    assert versions()["code"] != before
