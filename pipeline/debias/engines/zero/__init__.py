"""DeepSpeed: two gradients where ZeRO keeps them, combined before its own step."""
