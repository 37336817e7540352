"""`python -m debias.cli`, as torchrun and Slurm start it."""

from debias.cli.app import main

if __name__ == "__main__":
    main()
