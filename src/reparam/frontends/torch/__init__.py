"""Modules and traced graphs of PyTorch: read, run, write."""
