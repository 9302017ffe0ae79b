"""Bijections of images."""
