"""What things cost, measured: interleaved, on this machine, as JSON."""
