"""Annotated images: points and masks from the files of annotation programs, tables, PNG masks and data sets."""

from eden_hf.data.annotations.loading import load_references

__all__ = ["load_references"]
