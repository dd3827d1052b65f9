"""How do files become uint8 slices? Without PyTorch."""
