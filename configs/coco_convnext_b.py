"""Decoders with 9 layers on COCO 2017, under CLIP's ConvNeXt-B; the first half of the "COCO, YTVIS19" models.

Command:
    clipvis convert --clip convnext_base_w.safetensors --out clip_convnext_b
    python train.py configs/coco_convnext_b.py --clip clip_convnext_b --data-root data --workdir runs/coco_convnext_b
Cost: 368,750 steps of 16 images at 1024x1024.
Hardware: a little more than configs/lvis_convnext_b.py needs, for three more layers; not compiled or run at full size.
TPU: add --step.dtype bfloat16; the figures of configs/lvis_convnext_b.py are in it.
Scores: none while it trains (with --loop.evaluate-every 5000: of the first 50 videos of LV-VIS val). Afterwards:
    clipvis eval --model runs/coco_convnext_b/model --dataset lvvis_val --data-root data --out eval/coco_convnext_b
Published AP: none before the second half, configs/ytvis19_convnext_b.py.
"""

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.task import ClipVisExperiment

config = ClipVisExperiment(
    backbone="convnext_base_w",
    query_decoder=QueryDecoderConfig(num_layers=9),
    dataset="coco_train",
    data=PipelineConfig(repeat_threshold=0.0),
    loop=LoopConfig(picture_every=5000),
)
