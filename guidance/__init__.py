"""Guidance rules: one file per rule."""
