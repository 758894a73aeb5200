"""Anatomy report cards of encoders: `python scripts/evaluate.py --model outputs/run/last --source phantoms:32`."""

from eden_hf.cli import evaluate

if __name__ == "__main__":
    evaluate()
