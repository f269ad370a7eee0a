"""Fine-tuning on single frames of YouTube-VIS 2019, from the COCO model with CLIP's RN50.

Command:
    python train.py configs/ytvis19_r50.py --init-from runs/coco_r50/model --data-root data --workdir runs/ytvis19_r50
Cost: 6,000 steps of 16 frames, shorter side 800: Mask2Former's schedule for this data set, as the authors' own is not
stated.
Hardware: as configs/coco_r50.py.
TPU: add --step.dtype bfloat16; not compiled at this size of images.
Scores: none while it trains (with --loop.evaluate-every 1000: of the first 50 videos of LV-VIS val). Afterwards:
    clipvis eval --model runs/ytvis19_r50/model --dataset lvvis_val --data-root data --out eval/ytvis19_r50
Published AP, all frames, T = 9, K = 5: LV-VIS val 9.4, LV-VIS test 6.7, OVIS 15.8, YouTube-VIS 2019 39.7,
YouTube-VIS 2021 35.7, BURST 4.2.
"""

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.data.transforms import ShortSideResize
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.optimizer import OptimizerConfig
from clipvis_jax.training.task import ClipVisExperiment

config = ClipVisExperiment(
    query_decoder=QueryDecoderConfig(num_layers=9),
    dataset="ytvis19_train",
    data=PipelineConfig(image_size=(800, 1344), augmentation=ShortSideResize(), repeat_threshold=0.0),
    optimizer=OptimizerConfig(num_steps=6000, drop_steps=(4000,)),
    loop=LoopConfig(picture_every=5000),
)
