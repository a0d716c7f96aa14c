"""One rank of a training run: `python -m llava_sp.train CONFIG.yaml [flags]`, alone or started by a launcher."""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until a checkpoint can be saved, Ctrl-C ends the process at once, without a traceback through half-loaded modules.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from llava_sp.train.run import train
from llava_sp.train.runtime import training_command
from llava_sp.utils.ranks import world_size


@training_command
def main() -> None:
    """Trains what the command line asks for."""
    train(sys.argv[1:], ranks=world_size())


if __name__ == "__main__":
    main()
