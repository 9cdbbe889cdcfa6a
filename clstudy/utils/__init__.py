"""What every room may use: checks of input, files, folders, progress, several processes."""
