"""Compares models on the same texts: scores, what chance could make of them, size, speed and memory."""
