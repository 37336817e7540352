"""ROOM 7: after training: an adapter folded into its base."""
