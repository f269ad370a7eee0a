"""Decoders with 9 layers on COCO 2017, under CLIP's RN50; the first half of the "COCO, YTVIS19" models.

Command:
    clipvis convert --clip RN50.safetensors --out clip_rn50
    python train.py configs/coco_r50.py --clip clip_rn50 --data-root data --workdir runs/coco_r50
Cost: 368,750 steps of 16 images at 1024x1024.
Hardware: a little more than configs/lvis_r50.py needs, for three more layers; not compiled or run at full size.
TPU: add --step.dtype bfloat16; the figures of configs/lvis_r50.py are in it.
Scores: none while it trains (with --loop.evaluate-every 5000: of the first 50 videos of LV-VIS val). Afterwards:
    clipvis eval --model runs/coco_r50/model --dataset lvvis_val --data-root data --out eval/coco_r50
Published AP: none before the second half, configs/ytvis19_r50.py.
"""

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.task import ClipVisExperiment

config = ClipVisExperiment(
    query_decoder=QueryDecoderConfig(num_layers=9),
    dataset="coco_train",
    data=PipelineConfig(repeat_threshold=0.0),
    loop=LoopConfig(picture_every=5000),
)
