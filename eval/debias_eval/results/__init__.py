"""What runs leave on disk, read back: results, run folders, runs as methods, and which of them count."""
