"""Stages of a recipe that fuses encoders: which encoders, behind which interface, for which task."""
