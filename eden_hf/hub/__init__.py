"""Model cards, publishing, and checkpoints from elsewhere."""
