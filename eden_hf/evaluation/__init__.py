"""What was learned: embeddings, anatomy evaluations, probes, few-shot segmentation, and pictures of them."""
