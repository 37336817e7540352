"""What a suite is, and how its examples are read; the suites themselves, data only, lie in `suites/`."""
