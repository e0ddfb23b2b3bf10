"""``validate predict`` and ``validate confirm``: the bits that a GPU must give, and whether it gives them."""

import argparse
from pathlib import Path

from validation.commands import FAILED, INCONCLUSIVE, PASSED, Command, progress
from validation.errors import UsageError

FOLDER = Path("benchmarks/predictions")


def _predict(options: argparse.Namespace) -> int:
    from validation.device import select
    from validation.files import require_writable

    target = options.compiled or "sm_90"
    if options.out is None:
        if options.op or options.model or options.tiny:
            raise UsageError("--out: expected a file, where --op, --model or --tiny leave out some of the calls")
        require_writable(FOLDER)
    name = Path(options.ops).stem if options.ops.endswith(".py") else options.ops.rpartition(".")[2]
    path = options.out or FOLDER / f"{name}-{target}.json"
    device = select(compiled=target)
    from validation.bench import selection
    from validation.ops import load_op_set
    from validation.predictions.calls import calls
    from validation.predictions.kept import VERSIONS, Predictions
    from validation.record import Environment

    ops = load_op_set(options.ops)
    found = selection.chosen(options.op, options.model)
    made = [*calls(found, ops, device, whole=not options.tiny, progress=progress)]
    if not made:
        raise UsageError(f"--ops: {options.ops} has no op of these workloads, expected one at least")
    captured = Environment.capture(device=device.name, seed=0, profile="")
    versions = {name: getattr(captured, name) for name in VERSIONS}
    unknown = [one for one in made if one.unknown]
    for one in unknown:
        print(f"{one.op}, {one.workload}: not predicted: {one.unknown}")
    if len(unknown) == len(made):
        print(f"none of {len(made)} calls predicted for {target}: nothing written")
        return FAILED
    path.parent.mkdir(parents=True, exist_ok=True)
    Predictions(target, options.ops, versions, made).write(path)
    print(f"{len(made) - len(unknown)} of {len(made)} calls predicted for {target}: {path}")
    return PASSED


def _confirm(options: argparse.Namespace) -> int:
    from validation.predictions.kept import Predictions

    predictions = Predictions.read(Path(options.file))
    if not (options.gpu or options.compiled):
        raise UsageError("a device is needed that gives bits: expected --gpu, or --compiled to execute the PTX again")
    from validation.device import select

    device = select(options.gpu, options.compiled)
    from validation.ops import load_op_set
    from validation.predictions.confirm import Outcome, confirm, table

    ops = load_op_set(options.ops or predictions.ops)
    compared = [*confirm(predictions, ops, device, names=options.op, progress=progress)]
    print(
        f"{predictions.ops} for {predictions.target} with triton {predictions.versions['triton']}, on {device.name}\n"
    )
    print(table(compared))
    outcomes = {one.outcome for one in compared} - {Outcome.NOT_PREDICTED}
    if outcomes & {Outcome.DIFFERS, Outcome.FAILED}:
        return FAILED
    return PASSED if outcomes and outcomes <= {Outcome.HELD, Outcome.HELD_OTHERWISE} else INCONCLUSIVE


COMMANDS = (
    Command(
        "predict",
        "the bits that a GPU must give, at every workload of the real models",
        "Executes the compiled kernels on the CPU at the workloads of Helios and Hunyuan3D-2, and at shapes that\n"
        "neither has, and keeps SHA-256 hashes of inputs, kernels and outputs. What has .approx instructions, or\n"
        "depends on the order of threads, is told and not predicted.",
        _predict,
    ),
    Command(
        "confirm",
        "which predictions hold on this GPU",
        "Makes the predicted calls again, with --gpu on a GPU, and compares the hashes. The same kernel with other\n"
        "bits DIFFERS, and the exit status is 1: what the suite executes is not what the hardware does. Another\n"
        "version of Triton may make another kernel, of which nothing was predicted. Exit status 0 if all that was\n"
        "predicted held, 3 if something else than the bits is another.",
        _confirm,
        words=(("file", "what validate predict wrote"),),
    ),
)
