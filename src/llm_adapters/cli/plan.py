"""``llm-adapters plan``: memory and time of a training, before anything is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from llm_adapters.cli.options import ConfigFile, Set
from llm_adapters.cli.progress import duration

NAME = "plan"
GB = 1e9


def command(
    config: ConfigFile = None,
    set_: Set = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="A GPU by name instead of this machine: A100-80GB, L4, …")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", metavar="GB", help="Of a GPU without a name.")
    ] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option("--gpu-tflops", metavar="X", help="Its dense 16-bit TFLOP/s.")
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="That share the training, each on a GPU of that kind.")
    ] = 1,
) -> None:
    """Predict a training's peak memory and time on this machine or a named GPU; loads no weights."""
    from llm_adapters.runs.plan import plan
    from llm_adapters.runs.run import read_config
    from llm_adapters.train.devices import gpu as find_gpu

    found = find_gpu(gpu, gpu_memory, gpu_tflops)
    recipe = read_config(config, set_ or [])
    planned = plan(recipe, gpu=found, processes=processes, note=lambda text: typer.echo(f"{text} …", err=True))
    how = "packed, no padding" if planned.packed else "padded"
    typer.echo(f"parameters   {planned.base:,} frozen in {planned.dtype}, {planned.trained:,} trained")
    typer.echo(
        f"training     {planned.tokens:,} tokens in {planned.steps:,} steps, {planned.micro_batch} rows at once, {how}"
    )
    typer.echo(f"time         {duration(planned.seconds)} for training ({planned.rate})")
    typer.echo(
        f"peak memory  {planned.peak / GB:.2f} GB of {planned.capacity / GB:.1f} GB {'' if found else 'free '}there"
        f"{', in each process' if processes > 1 else ''}:"
    )
    for what, size in planned.memory.items():
        typer.echo(f"  {size / GB:8.2f} GB  {what}")
    if not planned.fits:
        typer.echo("\nThis does not fit. With --set it would take, predicted the same way:")
        for change, size in planned.mends.items():
            typer.echo(
                f"  {size / GB:8.2f} GB  {change}{'' if size <= planned.capacity else '  (does not fit either)'}"
            )
    if recipe.train.distributed == "fsdp" and processes == 1:
        typer.echo("\ntrain.distributed=fsdp shards the base over several processes: --processes N predicts one of N.")
