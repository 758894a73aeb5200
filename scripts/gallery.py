"""Draw what a model learned: `python scripts/gallery.py --model outputs/run/last --source my_xrays/`."""

from eden_hf.cli import gallery

if __name__ == "__main__":
    gallery()
