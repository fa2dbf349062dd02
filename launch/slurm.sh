#!/usr/bin/env bash
# Trains on GPU nodes under SLURM, one process a GPU; submitted again it goes on.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --time=12:00:00 \
#     launch/slurm.sh --config=configs/lcr_ser.py:csv_log --config.data_dir=D --workdir=W
#
# Submit it in the library's folder, whose .venv it takes where there is one. D and W are folders
# that all nodes share. The five values are those of sbatch, D and W; others are launch.train's.
# All nodes are told two minutes before the time is up, and when the job is cancelled: they save.
#SBATCH --job-name=lcrsr
#SBATCH --signal=TERM@120
#SBATCH --exclusive
#SBATCH --open-mode=append
set -euo pipefail

if [[ ${1-} != --config=* ]]; then
  echo "error: expected --config=FILE as the first word after launch/slurm.sh, found ${1-nothing}" >&2
  exit 2
fi
given=" $* "
if [[ $given != *" --workdir="* ]]; then
  echo "error: expected --workdir=DIR, a folder that all nodes share, found none" >&2
  exit 2
fi
if [[ -z ${SLURM_JOB_ID-} ]]; then
  echo "error: expected a job of SLURM, found none; submit it: sbatch launch/slurm.sh $*" >&2
  exit 2
fi
# SLURM runs a copy of this file from another folder.
cd "${SLURM_SUBMIT_DIR:-.}"
export PATH="$PWD/.venv/bin:$PATH"
first=$1
shift
exec srun --kill-on-bad-exit=1 python -m launch.train --coordinator=auto "$first" \
  --config.mesh.model=-1 "$@"
