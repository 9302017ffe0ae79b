"""Bijections of vectors."""
