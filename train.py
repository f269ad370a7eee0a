"""Train: ``python train.py CONFIG --workdir DIR --clip DIR``; see ``--help``."""

import sys

from clipvis_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
