"""What a training loop calls: one forward pass over bundles, one optimiser step, one run folder."""
