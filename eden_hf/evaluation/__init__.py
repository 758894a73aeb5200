"""What was learned: embeddings, anatomy evaluations, probes, few-shot segmentation, and pictures of them."""

try:
    import matplotlib  # noqa: F401
    import scipy  # noqa: F401
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(f"evaluations need {error.name}: pip install 'eden_hf[evaluation]'") from error
