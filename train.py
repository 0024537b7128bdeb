"""Train a model: `python train.py …` is `mfrec train …`."""

import sys

from mfrec.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
