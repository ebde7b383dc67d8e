"""Searching a folder of images with a trained network."""
