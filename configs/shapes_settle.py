r"""The bundled model: the decoders of configs/shapes_finetune.py, trained on under the CLIP that was itself trained on.

Ten queries are added to the twenty that there are. `make small-model` runs all five commands; the folders of its
decoders end in their seed.

Command:
    python train.py configs/shapes_clip.py --workdir runs/shapes_clip
    python train.py configs/shapes_clip_more.py --init-from runs/shapes_clip/model --workdir runs/shapes_clip_more
    python train.py configs/shapes_clipvis.py --clip runs/shapes_clip/model --workdir runs/shapes_clipvis
    python train.py configs/shapes_finetune.py --init-from runs/shapes_clipvis/model --workdir runs/shapes_finetune
    python train.py configs/shapes_settle.py --init-from runs/shapes_finetune/model \
        --clip runs/shapes_clip_more/model --workdir runs/shapes_settle
Cost: 2,800 steps of 8 images at 320x320, 37 minutes.
Hardware: 2 CPU cores.
Reached: AP 58.8, AP50 74.6 on val; base 58.1, novel 63.2, unseen 54.4 (docs/experiments.md).
"""

import dataclasses
from pathlib import Path

from clipvis_jax.config import load_config

_finetune = load_config(Path(__file__).with_name("shapes_finetune.py"))
config = dataclasses.replace(_finetune, query_decoder=dataclasses.replace(_finetune.query_decoder, num_queries=30))
