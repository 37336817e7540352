"""What a run will need before any GPU is touched: parameters, bytes, communication, and whether it fits."""
