"""The processes of a run: which one this is, how they fail, hang, and are stopped."""
