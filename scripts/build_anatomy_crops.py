"""Cut images into anatomy crops: `python scripts/build_anatomy_crops.py --source images/ --output crops/`."""

from eden_hf.cli import crops

if __name__ == "__main__":
    crops()
