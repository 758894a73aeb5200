"""Points, matches and masks from annotated examples: dense embeddings, the matcher, the paper's windows."""
