"""What every room may use: arguments, files, optional packages, wording."""
