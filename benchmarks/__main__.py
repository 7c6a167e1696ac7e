"""`python -m benchmarks NAME [OPTIONS]`: one of the measured comparisons; without a name, what there is."""

import importlib
import sys

from clar.errors import near

BENCHMARKS = {
    "augment": "clips per second of each augmentation, beside librosa and torch-audiomentations",
    "data": "decoding, opening and reading a clip store, beside a plain soundfile loop",
    "report": "how long the report of a sweep takes, of 245 and of 5,000 trials",
    "scale": "what the driver costs on a simulated cluster of 64 nodes x 8 GPUs, and tables of 20,000 trials",
    "storage": "what checkpoints cost a trial, in a folder and in a bucket, beside one after every epoch",
    "sweep": "what a sweep costs beside its trials: time a trial, memory, the table of finished ones",
    "tracking": "what 200 running trials cost a shared MLflow server, beside a request a metric",
}


def main(arguments: list[str]) -> int:
    """Run one benchmark; exit code 2 where there is no such one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m benchmarks NAME [--help]\n")
        for name, what in BENCHMARKS.items():
            print(f"{name:10} {what}")
        return 0
    if arguments[0] not in BENCHMARKS:
        print(f"error: no benchmark {arguments[0]!r}{near(arguments[0], BENCHMARKS)}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
