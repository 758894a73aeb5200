"""Embed a source: `accelerate launch scripts/embed.py --model M --images images/ --output embeddings.parquet`."""

from eden_hf.cli import embed

if __name__ == "__main__":
    embed()
