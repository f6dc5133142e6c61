"""A training set that is large for this machine, from the file to the model: time, memory, and what `plan` had said.

    python benchmarks/large.py [--samples N] [--labels K] [--jobs J] [--settings OPTION ...]

Queries of the made-up catalogue with the products they are for (as integers), in JSON Lines, written once below
build/benchmarks; then `machxc convert`, `machxc plan` and `machxc train`, each a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys

from common import BUILD, ROOT, Ran, header, run

FOLDER = BUILD / "large"


def machxc(*arguments: str) -> Ran:
    return run([sys.executable, "-m", "machxc.cli", *arguments, "--json"])


def told(what: str, ran: Ran, more: str = "") -> None:
    print(
        f"{what:<10}{ran.cpu_seconds:>8.0f} CPU s {ran.wall_seconds:>8.0f} s "
        f"{ran.peak_bytes / 1e6:>8.0f} MB peak  {more}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A training set that is large for this machine.")
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--labels", type=int, default=5_000_000)
    parser.add_argument("--jobs", default="1")
    parser.add_argument("--settings", nargs="*", default=[], metavar="OPTION", help="of machxc train, without dashes")
    arguments = parser.parse_args()
    print(header())
    FOLDER.mkdir(parents=True, exist_ok=True)
    data, store, model = (FOLDER / name for name in ("data.jsonl", "store", "model"))
    settings = [option for given in arguments.settings for option in ("--" + given).split("=", 1)]
    settings += ["--jobs", arguments.jobs]
    try:
        samples, labels = str(arguments.samples), str(arguments.labels)
        run([sys.executable, str(ROOT / "benchmarks" / "sample_files.py"), "jsonl", str(data), labels, "0", samples])
        size = data.stat().st_size / 1e6
        converted = machxc("convert", str(data), str(store))
        stored = json.loads(converted.output)["bytes"] / 1e6
        told("convert", converted, f"{size:.0f} MB to {stored:.0f} MB, {size / converted.cpu_seconds:.0f} MB/s")
        data.unlink()
        planned = machxc("plan", str(store), *settings)
        told("plan", planned)
        plan = json.loads(planned.output)
        trained = machxc("train", str(store), "--output", str(model), *settings)
        predicted = plan["training_bytes"] / 1e6
        error = 100 * (predicted - trained.peak_bytes / 1e6) / (trained.peak_bytes / 1e6)
        told("train", trained, f"predicted {predicted:.0f} MB ({error:+.0f} %), {plan['cpu_seconds']:.0f} CPU s")
        stored, expected = json.loads(trained.output)["bytes"] / 1e6, plan["model_bytes"] / 1e6
        print(f"model     {stored:.0f} MB, predicted {expected:.0f} MB; {plan['config']['repetitions']} repetitions")
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
