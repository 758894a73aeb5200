"""Pretraining: settings, curriculum, checkpoints, monitors and the loop under accelerate."""
