"""Pretrain Adam: `accelerate launch scripts/pretrain.py --config configs/adam_resnet18_small.yaml`."""

from eden_hf.training.pretraining import main

if __name__ == "__main__":
    main()
