"""Tiny trunks of every family the package promises, and models on them."""

from eden_hf import EdenConfig

BACKBONES = {
    "resnet": {
        "model_type": "resnet", "layer_type": "basic", "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1],
    },
    "bottleneck": {
        "model_type": "resnet", "layer_type": "bottleneck", "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1],
    },
    "convnextv2": {"model_type": "convnextv2", "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "swin": {
        "model_type": "swin", "embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 3],
        "window_size": 2, "image_size": 32, "patch_size": 2,
    },
    "vit": {
        "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "image_size": 32, "patch_size": 8,
    },
    "dinov2": {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 24, "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip


def tiny_config(backbone: str = "resnet", **settings) -> EdenConfig:
    """A configuration on a tiny trunk; D = 8 and K = 20 unless told."""
    return EdenConfig(
        **{"backbone_config": BACKBONES[backbone], "projection_dim": 8, "memory_bank_size": 20, **settings}
    )
