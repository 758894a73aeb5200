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

TOKENS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_MAPS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_ATTENDING = {**_MAPS, "num_attention_heads": [1, 1, 1, 1]}
_WINDOWS = {"embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 3], "window_size": 2, "image_size": 32}
_SMALL_RESNET = {"embedding_size": 8, **_MAPS, "depths": [1, 1, 1, 1]}

#: Tiny encoders of transformers by their type: first those with a backbone, which have a map for each stage.
STAGED_ENCODERS = {
    "resnet": {**_SMALL_RESNET, "layer_type": "basic"},
    "bit": {**_SMALL_RESNET, "num_groups": 4},
    "convnext": _MAPS, "convnextv2": _MAPS, "dinov3_convnext": _MAPS,
    "focalnet": {
        "embed_dim": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "focal_levels": [1] * 4,
        "focal_windows": [3] * 4, "image_size": 32, "patch_size": 2,
    },
    "swin": {**_WINDOWS, "patch_size": 2}, "swinv2": {**_WINDOWS, "patch_size": 2},
    "pvt_v2": _ATTENDING,
    "beit": TOKENS, "dinov2": TOKENS,
    "dinov2_with_registers": {**TOKENS, "num_register_tokens": 2}, "dinov3_vit": {**TOKENS, "num_register_tokens": 2},
}  # fmt: skip
ENCODERS = {
    **STAGED_ENCODERS,
    **dict.fromkeys(["vit", "deit", "vit_msn", "ijepa", "data2vec-vision", "dpt", "clip_vision_model"], TOKENS),
    "yolos": {**TOKENS, "image_size": [32, 32], "num_detection_tokens": 5},
    "clip": {"vision_config": TOKENS}, "siglip": {"vision_config": TOKENS}, "chinese_clip": {"vision_config": TOKENS},
    "regnet": {**_SMALL_RESNET, "groups_width": 4},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "mobilenet_v1": {"depth_multiplier": 0.25}, "mobilenet_v2": {"depth_multiplier": 0.35},
    "mobilevit": {
        "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 8, 8, 12, 12, 16, 32], "num_attention_heads": 2,
    },
    "mobilevitv2": {"width_multiplier": 0.25},
    "segformer": _ATTENDING, "glpn": _ATTENDING, "pvt": {**_ATTENDING, "image_size": 64}, "poolformer": _MAPS,
    "levit": {
        "image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1],
        "key_dim": [4, 4, 4],
    },
    "swiftformer": {"embed_dims": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
    "sam_vision_model": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
        "output_channels": 8, "mlp_dim": 16, "window_size": 2, "global_attn_indexes": [1],
    },
}  # fmt: skip


def tiny_config(backbone: str = "resnet", **settings) -> EdenConfig:
    """A configuration on a tiny trunk; D = 8 and K = 20 unless told."""
    return EdenConfig(
        **{"backbone_config": BACKBONES[backbone], "projection_dim": 8, "memory_bank_size": 20, **settings}
    )


def tiny_v2_config(backbone: str = "resnet", **settings) -> EdenConfig:
    """The same for Adam-v2, with a head of 12 outputs."""
    return tiny_config(
        backbone,
        **{"localizability_hidden_size": 16, "localizability_bottleneck_size": 8, "localizability_outputs": 12}
        | settings,
    )
