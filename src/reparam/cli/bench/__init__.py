"""Measure models on this machine: what was asked for, measured, told, and the fastest picked."""
