"""nfopt: a neural functional optimizer and editor for PyTorch training loops."""
