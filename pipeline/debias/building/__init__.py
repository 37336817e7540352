"""From a run's settings to its pieces, a file a piece: the only room that knows both."""
