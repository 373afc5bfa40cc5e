"""What is done with a net: files for engines, running them, measuring."""
