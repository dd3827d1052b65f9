"""What goes on around a training step? Runs, priors, optimisers."""
