"""The spatial part: feature extractor (SFE), detail integrator (DFI), and the projector that joins them."""
