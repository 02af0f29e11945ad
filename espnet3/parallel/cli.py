"""``python -m espnet3 shards status|collect|resubmit|cancel|run``: asynchronous runs from the command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from espnet3.errors import UserError


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m espnet3 shards",
        description="Look after the detached jobs of an asynchronous run.",
        epilog="RUN is the run's file (run-<hex>.json), or the specifications folder where it holds one run.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, details: str = "") -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}")
        if name not in ("run", "background"):
            made.add_argument("run", metavar="RUN", help="run-<hex>.json, or the folder of a single run")
        return made

    status = command(
        "status", "say how each shard stands", "Exit status: 0 all done, 1 something failed or lost, 3 busy."
    )
    status.add_argument("--json", action="store_true", help="one JSON object a shard")
    status.add_argument("--all", action="store_true", help="a line for every shard, not only for those in trouble")
    collect = command(
        "collect",
        "merge what is done, and say what is missing",
        "Only a complete run gets its final name; before that the records so far go to --partial. "
        "Exit status: 0 complete, 1 something failed or lost, 3 busy.",
    )
    collect.add_argument("--output", help="where the records go, as JSONL, when the run has no output folder")
    collect.add_argument("--partial", help="where the records so far go, as JSONL, while the run is incomplete")
    collect.add_argument("--wait", action="store_true", help="wait first until no job is queued or running")
    command("resubmit", "submit again only what failed or is lost", "A killed shard goes on after its last record.")
    command("cancel", "cancel what is queued or running", "What is done stays; resubmit goes on with the rest.")
    run = command("run", "run one shard's specification here", "This is what a detached job does.")
    run.add_argument("spec", nargs="?", metavar="SPEC", help="spec-<hex>-r<rank>.json")
    run.add_argument("--list", help="a file of specifications, one a line")
    run.add_argument("--task", type=int, default=0, help="which line of the list, from 0")
    background = command("background", "run a list of specifications one after another")
    background.add_argument("list", metavar="LIST", help="a file of specifications, one a line")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Errors that the user can mend are one line on stderr and status 2."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        return COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        if arguments.command == "run" and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        return 2


def _status(arguments: argparse.Namespace) -> int:
    from espnet3.parallel.detached import load_run, summary

    shards = load_run(arguments.run).status()
    if arguments.json:
        for shard in shards:
            print(json.dumps(vars(shard), ensure_ascii=False))
        return _exit_status(shards)
    print(summary(shards))
    if arguments.all:
        for shard in shards:
            print(f"  {Path(shard.result).name} ({shard.job_id or 'no job'}): {shard.state} {shard.detail}".rstrip())
    return _exit_status(shards)


def _collect(arguments: argparse.Namespace) -> int:
    from espnet3.io import write_jsonl
    from espnet3.parallel.detached import load_run

    run = load_run(arguments.run)
    if arguments.wait:
        run.wait()
    collected = run.collect()
    print(collected.summary())
    in_memory = isinstance(collected.result, list) and run.record["output_dir"] is None
    if collected.complete and not in_memory:
        print(collected.result)
    target = arguments.output if collected.complete else arguments.partial
    if target and (in_memory or not collected.complete):
        print(f"{write_jsonl(target, collected.result)} records in {target}")
    return _exit_status(collected.shards)


def _resubmit(arguments: argparse.Namespace) -> int:
    from espnet3.parallel.detached import load_run

    submitted = load_run(arguments.run).resubmit()
    print(f"{len(submitted)} shards submitted again")
    for job in submitted:
        print(f"  {Path(job['result']).name}: {job['job_id']}")
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from espnet3.parallel.detached import load_run

    print(f"{load_run(arguments.run).cancel()} shards cancelled")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from espnet3.parallel.spec import run_spec

    if (arguments.spec is None) == (arguments.list is None):
        raise UserError("shards run: give either SPEC or --list with --task")
    spec = arguments.spec
    if spec is None:
        lines = Path(arguments.list).read_text(encoding="utf-8").splitlines()
        if not 0 <= arguments.task < len(lines):
            raise UserError(f"{arguments.list}: it has no line {arguments.task}; there are {len(lines)}, from 0")
        spec = lines[arguments.task]
    run_spec(spec)
    return 0


def _background(arguments: argparse.Namespace) -> int:
    from espnet3.parallel.background import run_list

    return 1 if run_list(arguments.list) else 0


def _exit_status(shards: Sequence) -> int:
    states = {shard.state for shard in shards}
    if states & {"failed", "lost"}:
        return 1
    return 0 if states <= {"done"} else 3


COMMANDS = {
    "status": _status,
    "collect": _collect,
    "resubmit": _resubmit,
    "cancel": _cancel,
    "run": _run,
    "background": _background,
}

if __name__ == "__main__":
    sys.exit(main())
