"""Fine-tune on a labelled task: `python scripts/finetune.py --config configs/finetune_scr_heart.yaml`."""

from eden_hf.cli import finetune

if __name__ == "__main__":
    finetune()
