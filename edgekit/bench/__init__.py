"""`edgekit bench`: put a bundle on a device, prove that it computes the right thing there, and measure it. No torch."""
