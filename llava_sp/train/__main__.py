"""One rank of a training run: `python -m llava_sp.train CONFIG.yaml [flags]`, alone or started by a launcher."""

import sys

from llava_sp.train.run import train
from llava_sp.train.runtime import training_command, world_size


@training_command
def main() -> None:
    """Trains what the command line asks for."""
    train(sys.argv[1:], ranks=world_size())


if __name__ == "__main__":
    main()
