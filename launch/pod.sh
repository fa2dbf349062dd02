#!/usr/bin/env bash
# Runs one training command on every worker of a Cloud TPU slice, from this machine.
#
#   launch/pod.sh NAME ZONE --config=configs/lcr_ser_qilin.py --workdir=DIR
#
# NAME and ZONE are those of `gcloud compute tpus tpu-vm create`. The library must be installed on
# the workers, in REMOTE_DIR (default: lcrsr in the home folder), in its own .venv or for `python`,
# and DIR be a folder that they all share. The mesh is all chips of the slice, with the tables cut
# over them; later flags win, for instance --config.mesh.data=4. The same command continues a run.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  echo "error: expected NAME ZONE and the flags of launch.train, found $# words" >&2
  exit 2
fi
name=$1 zone=$2
if [[ $3 != --config=* ]]; then
  echo "error: expected --config=FILE after NAME ZONE, found $3" >&2
  exit 2
fi
printf -v first '%q' "$3"
shift 3
arguments=""
if [[ $# -gt 0 ]]; then printf -v arguments ' %q' "$@"; fi
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="\
cd ${REMOTE_DIR:-lcrsr} && export PATH=\"\$PWD/.venv/bin:\$PATH\" && \
exec python -m launch.train --coordinator=auto \
$first --config.mesh.model=-1$arguments"
