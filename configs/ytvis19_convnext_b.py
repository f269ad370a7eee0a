"""Fine-tuning on single frames of YouTube-VIS 2019, from the COCO model with CLIP's ConvNeXt-B.

Command:
    python train.py configs/ytvis19_convnext_b.py --init-from runs/coco_convnext_b/model --data-root data \
        --workdir runs/ytvis19_convnext_b
Cost: 6,000 steps of 16 frames, shorter side 800: Mask2Former's schedule for this data set, as the authors' own is not
stated.
Hardware: as configs/coco_convnext_b.py.
TPU: add --step.dtype bfloat16; not compiled at this size of images.
Scores: none while it trains (with --loop.evaluate-every 1000: of the first 50 videos of LV-VIS val). Afterwards:
    clipvis eval --model runs/ytvis19_convnext_b/model --dataset lvvis_val --data-root data \
        --out eval/ytvis19_convnext_b
Published AP, all frames, T = 9, K = 5: LV-VIS val 15.9, LV-VIS test 12.0, OVIS 18.6, YouTube-VIS
2019 50.0, YouTube-VIS 2021 44.2, BURST 5.0.
"""

from clipvis_jax.data.pipeline import PipelineConfig
from clipvis_jax.data.transforms import ShortSideResize
from clipvis_jax.loop.loop import LoopConfig
from clipvis_jax.models.query_decoder import QueryDecoderConfig
from clipvis_jax.training.optimizer import OptimizerConfig
from clipvis_jax.training.task import ClipVisExperiment

config = ClipVisExperiment(
    backbone="convnext_base_w",
    query_decoder=QueryDecoderConfig(num_layers=9),
    dataset="ytvis19_train",
    data=PipelineConfig(image_size=(800, 1344), augmentation=ShortSideResize(), repeat_threshold=0.0),
    optimizer=OptimizerConfig(num_steps=6000, drop_steps=(4000,)),
    loop=LoopConfig(picture_every=5000),
)
