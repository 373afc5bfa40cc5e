"""Train nets of benchmarks/cifar_nets.py, by name and seed, in the order given.

    python benchmarks/cifar_train.py RepVGG-S/0 ResNet-S/0 --threads 1

For machines that are shared or stopped now and then: the scripts that draw conclusions from them
(branch_ablation.py, block_kinds.py) train what is missing themselves.
"""

from __future__ import annotations

from cifar_common import open_cifar, parser
from cifar_nets import RUNS, shared_runs, train_net


def main() -> None:
    options = parser(__doc__, "cifar")
    options.set_defaults(runs=RUNS)
    options.add_argument("nets", nargs="+", metavar="NET/SEED")
    options = options.parse_args()
    data = open_cifar(options)
    records = shared_runs(options)
    for key in options.nets:
        name, _, seed = key.rpartition("/")
        train_net(records, name, int(seed), data, options)


if __name__ == "__main__":
    main()
