"""What does every command stand on? Devices, checkpoints, errors, and settings as a command line."""
