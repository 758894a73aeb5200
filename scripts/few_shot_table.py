"""Few-shot Dice: `python scripts/few_shot_table.py --config configs/few_shot_scr.yaml --encoders a b [--frozen]`."""

from eden_hf.cli import few_shot

if __name__ == "__main__":
    few_shot()
