"""GenSAR: unified generative search and recommendation, RecSys 2025."""
