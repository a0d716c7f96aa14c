"""Starts a run on all GPUs of a node, or on several nodes: `python -m llava_sp.train.launch CONFIG.yaml [flags]`.

What a user can get wrong is checked here, once, before the ranks start.
"""

import argparse
import os
import shutil
import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the process at once, without a traceback through half-loaded modules, until there are ranks to end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from llava_sp.train.command_line import collect, complete
from llava_sp.train.inputs import check_inputs
from llava_sp.train.run import train
from llava_sp.utils.errors import UserError, command_line
from llava_sp.utils.logging import setup_logging
from llava_sp.utils.ranks import count_processes, end_with_launcher, run_torchrun


def read_launcher_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Splits the launcher's flags, spelled with underscores or dashes, from those of the training."""
    parser = argparse.ArgumentParser(
        prog="python -m llava_sp.train.launch",
        usage="%(prog)s [flags] CONFIG.yaml [...] [--name value ...]",
        description="Starts llava_sp.train on the GPUs of this machine, or of several.",
        epilog="All other arguments are passed on: python -m llava_sp.train --help",
        allow_abbrev=False,
    )

    def add(name: str, told: str, kind: type = str) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, type=kind, metavar="N" if kind is int else "NAME", help=told)

    add("nproc_per_node", "processes on this node; default: one per GPU", int)
    add("nnodes", "number of nodes; default: 1", int)
    add("node_rank", "rank of this node, where no rendezvous finds it out", int)
    add("rdzv_endpoint", "host:port where the nodes meet (torchrun's rendezvous)")
    add("rdzv_id", "name of the job, the same on all nodes")
    add("master_addr", "address of the first node, with --node_rank")
    add("master_port", "port on the first node", int)
    add("hostfile", "DeepSpeed hostfile; starts the ranks on all its nodes from here")
    return parser.parse_known_args(argv)


def torchrun_arguments(flags: argparse.Namespace, processes: int) -> list[str]:
    """Returns torchrun's own arguments for one node or several.

    Raises:
        UserError: Several nodes are asked for, without a place where they meet.
    """
    arguments = [f"--nproc_per_node={processes}"]
    if flags.nnodes in (None, 1):
        return [*arguments, "--standalone"]
    arguments.append(f"--nnodes={flags.nnodes}")
    if flags.rdzv_endpoint:
        arguments += ["--rdzv_backend=c10d", f"--rdzv_endpoint={flags.rdzv_endpoint}"]
        return [*arguments, f"--rdzv_id={flags.rdzv_id or 'llava-sp'}"]
    if flags.master_addr is None or flags.node_rank is None:
        raise UserError("--nnodes needs --rdzv_endpoint HOST:PORT, or --master_addr HOST and --node_rank N.")
    arguments += [f"--node_rank={flags.node_rank}", f"--master_addr={flags.master_addr}"]
    return [*arguments, f"--master_port={flags.master_port or 29500}"]


def deepspeed_arguments(flags: argparse.Namespace) -> list[str]:
    """Returns the arguments of DeepSpeed's launcher, which reads nodes and GPUs from its hostfile.

    Raises:
        UserError: A flag is given that contradicts the hostfile.
    """
    for name in ("nnodes", "node_rank", "rdzv_endpoint", "rdzv_id"):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name} does not go with --hostfile, which says which nodes there are; leave it out.")
    arguments = ["--hostfile", flags.hostfile]
    for name, theirs in (
        ("nproc_per_node", "num_gpus"),
        ("master_addr", "master_addr"),
        ("master_port", "master_port"),
    ):
        if (value := getattr(flags, name)) is not None:
            arguments += [f"--{theirs}", str(value)]
    return arguments


@command_line
def main() -> None:
    """Counts the GPUs, checks the arguments, and starts the ranks."""
    end_with_launcher()
    setup_logging()
    flags, rest = read_launcher_flags(sys.argv[1:])
    if flags.hostfile:
        if shutil.which("deepspeed") is None:
            raise UserError("--hostfile needs DeepSpeed's launcher: pip install -e '.[train]'.")
        # DeepSpeed's launcher starts the ranks over ssh.
        os.execvp("deepspeed", ["deepspeed", *deepspeed_arguments(flags), "--module", "llava_sp.train", *rest])  # noqa: S606, S607
    given = collect(rest)
    processes = count_processes(flags.nproc_per_node, use_cpu=given.get("use_cpu", False))
    ranks = processes * (flags.nnodes or 1)
    complete(given, ranks=ranks)
    check_inputs(given)
    if given.get("dry_run"):
        train(rest, ranks=ranks)
        return
    module = ["-m", "llava_sp.train", *rest]
    mend = (
        "The same command continues from the last checkpoint. If memory ran out, start anew, in another --output_dir "
        "if there is a checkpoint, with a lower --per_device_train_batch_size."
    )
    sys.exit(run_torchrun([*torchrun_arguments(flags, processes), *module], mend=mend))


if __name__ == "__main__":
    main()
