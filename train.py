"""Train a model: `python train.py …` is `mfrec train …`."""

import sys

from mfrec.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
