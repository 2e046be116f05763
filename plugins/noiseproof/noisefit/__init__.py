"""NoiseFiT."""
