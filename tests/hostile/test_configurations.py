"""Sizes from somebody else's ``config.json``: none builds for minutes or asks for more memory than there is."""

import json
import shutil
import subprocess
import sys

import pytest

from clipvis_jax import bundled
from clipvis_jax.errors import InputError
from clipvis_jax.weights.model_folder import load_model

# In a process without the run-time type checks of tests, and with bounded memory.
CORPUS = """
import copy, json, resource, time
from clipvis_jax.errors import InputError
from clipvis_jax.models.backbones import BACKBONES
from clipvis_jax.models.clipvis import ClipVisConfig
from clipvis_jax.weights.model_folder import config_from_json, config_to_json

resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
NUMBERS = (0, -1, 10**6 + 2**20, 2**31, 2**63, 10**30, 1.5, float("nan"), True, None, "8", [8], {})
OTHERS = ("nothing", 3, 0.0, -1e-6, None, [], {}, float("nan"), 10**6)
count = 0
for name in ("RN50", "convnext_base_w"):
    whole = config_to_json(ClipVisConfig(backbone=BACKBONES[name]))
    for part, fields in whole.items():
        for field, value in fields.items():
            bad = OTHERS if isinstance(value, str | float) else NUMBERS
            if isinstance(value, tuple):
                bad = [[*value[:-1], number] for number in NUMBERS] + [list(value[:-1]), [], 3, None]
            for other in bad if field != "kind" else ():
                changed = copy.deepcopy(whole)
                changed[part][field] = other
                start = time.process_time()
                try:
                    config_from_json(json.loads(json.dumps(changed)))
                except InputError as error:
                    message = str(error)
                else:
                    message = "taken"
                if not message.startswith(f"{part}.{field} ") or "\\n" in message or time.process_time() > start + 1:
                    print(part, field, other, message)
                count += 1
print(count)
"""


def test_every_field_has_bounds():
    process = subprocess.run([sys.executable, "-c", CORPUS], capture_output=True, text=True, timeout=300, check=True)
    *wrong, count = process.stdout.splitlines()
    assert wrong == []
    assert int(count) > 500


def test_large_sizes_are_compared_with_what_the_file_holds(tmp_path):
    """Sizes within bounds, but of gigabytes: nothing of that size is made."""
    folder = shutil.copytree(bundled.MODEL, tmp_path / "model")
    path = folder / "config.json"
    description = json.loads(path.read_bytes())
    description["config"]["text"] |= {"vocab_size": 2**20, "width": 2**14, "num_layers": 2}
    path.write_text(json.dumps(description))
    with pytest.raises(InputError, match="asks for"):
        load_model(folder)
