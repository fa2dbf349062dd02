"""Exports a ranker, for `launch.serve` and for programs without this library's training.

    python -m launch.export --workdir=W --out=E [--stage=S]

E holds what the model computes as StableHLO (`jax.export`, for CPU, CUDA and TPU), its weights as
safetensors, the names of users, items and words, and manifest.json with versions, metrics and the
SHA-256 of every file. `serving.exported.ExportedModel(E)` needs JAX, NumPy and safetensors alone.
Runs of LCR-SER and of its baselines can be exported.
"""

from __future__ import annotations

from absl import flags

from core import cli
from core.errors import UserError


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run of launch.train.")
    flags.DEFINE_string("out", None, "Folder to write; an export there is replaced.")
    flags.DEFINE_string(
        "stage", None, "train, rl or control; default rl where it was trained, else train."
    )


def check_flags() -> None:
    if not flags.FLAGS.workdir or not flags.FLAGS.out:
        raise UserError("expected --workdir=W and --out=E, found one missing; pass both")


cli.begin(__name__, define_flags, check_flags)


from core.files import expanded
from serving.export import check_place, export


def main() -> None:
    out = expanded(flags.FLAGS.out, "--out")
    check_place(out)
    manifest = export(flags.FLAGS.workdir, out, flags.FLAGS.stage)
    size = sum(described["bytes"] for described in manifest["files"].values())
    print(
        f"{out}: {manifest['method']} of stage {manifest['stage']}, "
        f"{manifest['sizes']['items']:,} items, {size / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    cli.run(main)
