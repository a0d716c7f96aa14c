"""The benchmarks, one file each: data files, questions, generation settings, scorer, what is handed in."""

from llava_sp.eval.benchmarks.base import Benchmark
from llava_sp.eval.benchmarks.gqa import Gqa
from llava_sp.eval.benchmarks.llava_bench import LlavaBench
from llava_sp.eval.benchmarks.mmbench import MmBench
from llava_sp.eval.benchmarks.mme import Mme
from llava_sp.eval.benchmarks.mmvet import MmVet
from llava_sp.eval.benchmarks.mmvp import Mmvp
from llava_sp.eval.benchmarks.pope import Pope
from llava_sp.eval.benchmarks.refcoco import RefCoco
from llava_sp.eval.benchmarks.scienceqa import ScienceQa
from llava_sp.eval.benchmarks.seed import SeedBench
from llava_sp.eval.benchmarks.textvqa import TextVqa
from llava_sp.eval.benchmarks.tiny import Tiny
from llava_sp.eval.benchmarks.vizwiz import VizWiz, VizWizVal
from llava_sp.eval.benchmarks.vqav2 import Vqav2, Vqav2Val
from llava_sp.utils.errors import UserError

_ALL: tuple[Benchmark, ...] = (
    Vqav2(),
    Vqav2Val(),
    Gqa(),
    VizWiz(),
    VizWizVal(),
    ScienceQa(),
    TextVqa(),
    Pope(),
    Mme(),
    MmBench("mmbench", "MMBench dev", "mmbench", "mmbench_dev_20230712.tsv", "en", "here"),
    MmBench("mmbench_test", "MMBench test", "mmbench", "mmbench_test_20230712.tsv", "en", "server"),
    MmBench("mmbench_cn", "MMBench-CN dev", "mmbench_cn", "mmbench_dev_cn_20231003.tsv", "cn", "here"),
    MmBench("mmbench_cn_test", "MMBench-CN test", "mmbench_cn", "mmbench_test_cn_20231003.tsv", "cn", "server"),
    SeedBench(),
    LlavaBench(),
    MmVet(),
    Mmvp(),
    RefCoco("refcoco", "RefCOCO", ("val", "testA", "testB")),
    RefCoco("refcoco+", "RefCOCO+", ("val", "testA", "testB")),
    RefCoco("refcocog", "RefCOCOg", ("val", "test")),
    Tiny(),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}
"""All benchmarks by name."""


def get_benchmark(name: str) -> Benchmark:
    """Returns the benchmark of that name.

    Raises:
        UserError: There is none; the message lists the names.
    """
    if name not in BENCHMARKS:
        raise UserError(f"There is no benchmark {name!r}. Choose of {', '.join(BENCHMARKS)}.")
    return BENCHMARKS[name]
