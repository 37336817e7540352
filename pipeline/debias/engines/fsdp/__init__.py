"""FSDP2 (`torch.distributed.fsdp.fully_shard`): parameters and gradients that lie in rows on the ranks."""
