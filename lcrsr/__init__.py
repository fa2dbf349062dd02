"""LCR-SER: latent cross reasoning over search and recommendation histories."""
