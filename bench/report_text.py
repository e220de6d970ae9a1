"""The words of bench/RESULTS.md: what each chapter compares with what."""

from __future__ import annotations

from dataclasses import dataclass

INTRODUCTION = """\
# Results

Every number on this page was written by `python -m bench.report` from the files in [`results/`](results), each of which
says on which device, with which versions, at which commit and by which command it was measured. A number is a median;
brackets hold the lowest and the highest of its repeats. Two speeds are compared only within one run on one device."""

REPRODUCE = """\
## Measure it yourself

```bash
python -m bench.harvest --minutes 9 --out DIR   # everything above in one go; --dry-run tries it at toy sizes on a CPU
python -m bench.throughput                      # or one chapter at a time
python -m bench.waterfall
python -m bench.scaling
python -m bench.kernels
python -m bench.launches
python -m bench.accuracy --dataset cifar100 --minutes 60
python -m bench.report                          # write this page anew
```
"""


@dataclass(frozen=True)
class Chapter:
    """A chapter of the page: the section of the result files it shows, its words and its picture, if it has one."""

    section: str
    title: str
    text: str
    picture: str | None = None


CHAPTERS = (
    Chapter(
        "throughput",
        "Training against timm's TNT",
        "Whole training steps: forward, loss, backward and optimiser on one fixed batch that lies on the device. "
        "The rival is timm's TNT at the same sizes, with the same batch and loss, in every form that PyTorch "
        "offers; it has one token and one head less than TITN. Steps of all contenders are interleaved (A B A B),"
        " so that a drifting machine moves all alike. The ratio compares, round by round, with the fastest of "
        "timm's forms at that batch. First steps are timed in new processes, with empty compile caches and again "
        "with full ones.",
        "throughput",
    ),
    Chapter(
        "waterfall",
        "One switch after another",
        "The same training step from the plain reference to everything that `--fast` switches on: each line adds "
        "one switch to the line above.",
        "waterfall",
    ),
    Chapter(
        "scaling",
        "Scaling",
        "Training speed and memory as one size changes and the others stay as they are in the paper. The product "
        "ceiling is the rate of one large matrix product. A step's share of it is the time it spends in products, "
        "attention or fused kernels (a profile's share) times the rate while there: small matrices run below the "
        "ceiling. The other time goes into element-wise work (normalisation, activations, casts and copies, bound by "
        "memory), the optimiser, or the rest: on a GPU waiting for work, on a CPU Python, autograd and the compiler's "
        "checks.",
        "scaling",
    ),
    Chapter(
        "ceilings",
        "Ceilings of the device",
        "What this very device reaches: bytes a second (read and written) of a large copy, and operations a "
        "second of one large matrix product in each precision. All floors and percentages below are against "
        "these.",
    ),
    Chapter(
        "correctness",
        "Kernels: are they right?",
        "Output and every gradient of each kernel against float64. Right means: the error is at most twice that "
        "of plain PyTorch in the same precision, or below 1e-5, and two runs are equal bit by bit. The "
        "number is the largest relative error of the case. A kernel that is wrong is not timed.",
    ),
    Chapter(
        "kernels",
        "Kernels: how fast?",
        "Each operation at the sizes of a training step, ours against the fastest of the alternatives: eager "
        "PyTorch, `torch.compile`, the backends of `scaled_dot_product_attention`, xformers and others where they"
        " are installed. Times are of a CUDA graph where there is one, so without the cost of launching; brackets"
        ' hold the tenth and the ninetieth percentile. "Of the floor" is the larger of two least times, of moving'
        " the bytes and of doing the arithmetic at the ceilings above, as a share of the time taken: 100% cannot "
        "be beaten. In the picture our kernels are filled and joined by a thin line with the fastest rival, "
        "which is hollow; on a CPU there are rivals only.",
        "roofline",
    ),
    Chapter(
        "launches",
        "Kernel launches",
        "How many kernels a forward and a backward start, counted without a GPU. Eager: PyTorch operations that "
        "compute. Compiled: what torch.compile's CPU back end generates and calls; on a GPU it may fuse a little "
        "differently. Fused: kernels that Triton's interpreter starts, and PyTorch operations beside them. Under "
        "autocast, casts of the weights come on top everywhere. The optimiser's step is not counted.",
    ),
    Chapter(
        "step_profile",
        "Where a step goes",
        "One training step with every fast part on, by kernel, as torch.profiler sees it.",
        "step_profile",
    ),
    Chapter(
        "accuracy",
        "Accuracy",
        "Top-1 of the last epoch, never of the best one. The development split is a part of the training set, "
        "held out for choices; the test split is the data set's own test set. The interval is that of the mean "
        "over seeds. Where settings were tried on a development split, each is listed by what distinguishes it.",
        "accuracy",
    ),
)
