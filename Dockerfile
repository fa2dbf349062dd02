# Images of the library for CPUs, CUDA or TPUs, from locked and hashed packages:
#   docker build --build-arg=DEVICE=cpu -t IMAGE .      # or cuda, tpu
#   docker run -v FOLDER:/data IMAGE python -m launch.train --config=... --workdir=/data/run
FROM python:3.11-slim-bookworm
ARG DEVICE=cpu
WORKDIR /lcrsr
COPY requirements requirements
RUN test -f "requirements/image-$DEVICE.txt" || { \
      echo "error: expected DEVICE=cpu, cuda or tpu, found $DEVICE" >&2; exit 2; }
RUN pip install --no-cache-dir --require-hashes -r "requirements/image-$DEVICE.txt"
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .
# A process that the host stops is told by SIGTERM, and saves.
STOPSIGNAL SIGTERM
CMD ["python", "-m", "launch.train", "--config=configs/lcr_ser_qilin.py"]
