"""What surrounds a training step? Runs, settings, augmentation, optimisers, and the loops of painter and priors."""
