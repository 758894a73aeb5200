"""Pretrain Adam: `accelerate launch scripts/pretrain.py --config configs/adam_resnet18_small.yaml`."""

from eden_hf.cli import pretrain

if __name__ == "__main__":
    pretrain()
