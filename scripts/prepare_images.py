"""Decode a source for pretraining: `python scripts/prepare_images.py images/ prepared/`."""

from eden_hf.cli import prepare

if __name__ == "__main__":
    prepare()
