"""Starting a run on more than one process: local, Slurm, Kubernetes; what is written is checked before it is."""

from debias.launching.job import Job, make_job, write_job

__all__ = ["Job", "make_job", "write_job"]
