"""Evaluate: ``python eval.py --model DIR --dataset NAME``; see ``--help``."""

import sys

from clipvis_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
