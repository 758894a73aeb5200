"""Looking at what was learned: embeddings of parts, correspondence, plots and the gallery that draws them."""
