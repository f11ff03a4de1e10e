"""Parts of a training loop: one forward pass over bundles, one optimiser step, one run folder."""
