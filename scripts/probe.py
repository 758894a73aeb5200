"""Probe embeddings: `python scripts/probe.py --model outputs/run/last --source cxr --label_column label`."""

from eden_hf.cli import probe

if __name__ == "__main__":
    probe()
