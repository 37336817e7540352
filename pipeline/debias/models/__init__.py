"""ROOM 5: base models, quantization, adapters."""
