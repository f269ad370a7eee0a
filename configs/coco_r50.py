"""Decoders with 9 layers on COCO 2017, under CLIP's RN50; the first half of the "COCO, YTVIS19" models.

Command:
    clipvis convert --clip RN50.safetensors --out clip_rn50
    python train.py configs/coco_r50.py --clip clip_rn50 --data-root data --workdir runs/coco_r50
Cost: 368,750 steps of 16 images at 1024x1024.
Hardware: a little more than configs/lvis_r50.py needs, for three more layers; not compiled or run at full size.
Published AP: none before the second half, configs/ytvis19_r50.py.
"""

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.clipvis_task import ClipVisExperiment

config = ClipVisExperiment(
    query_decoder=QueryDecoderConfig(num_layers=9),
    dataset="coco_train",
    data=PipelineConfig(repeat_threshold=0.0),
)
