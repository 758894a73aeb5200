"""Convert a checkpoint from elsewhere: `python scripts/convert_checkpoint.py --source adam.pth --output adam/`."""

from eden_hf.cli import convert

if __name__ == "__main__":
    convert()
