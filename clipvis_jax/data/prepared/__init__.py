"""Data sets in one folder of large files, written and read with tensorflow-datasets, but without TensorFlow.

`prepare` writes ArrayRecord files that any program can open with ``tfds.builder_from_directory``; `open_prepared` reads
them back as the same records that the published files give.
"""

from clipvis_jax.data.prepared.reading import PreparedDataset, open_prepared
from clipvis_jax.data.prepared.writing import prepare

__all__ = ["PreparedDataset", "open_prepared", "prepare"]
