"""Readers of downstream data sets: one module for each published layout, and one for any source with columns."""
