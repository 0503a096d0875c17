# Any image with python3 (3.11 or newer) and its venv module works. The tag moves with security updates; for an image that
# never changes, pass --build-arg BASE_IMAGE=python:3.11-slim@sha256:… with the digest that `docker pull` prints.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
# The requirement for torch and further arguments of pip, such as an index. They select the build of torch: CPU or CUDA.
ARG TORCH=torch
ARG PIP_ARGS=
# pip also looks for wheels in this folder, which may be missing. Mount torch's CPU wheel here, for example.
ARG WHEELS=/opt/wheels
ENV PIP_FIND_LINKS=${WHEELS} PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python3 -m venv /opt/venv
# The dependencies are a separate layer, so a change of the code does not install torch again.
# torch has no hash: its build depends on where it comes from. What it needs is installed before, by hash.
COPY constraints.txt requirements.txt ./
RUN /opt/venv/bin/pip install ${PIP_ARGS} --require-hashes --no-deps -r requirements.txt \
    && /opt/venv/bin/pip install ${PIP_ARGS} -c constraints.txt "${TORCH}"
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY client client
COPY docs docs
# pip refuses constraints of an isolated build where there is none.
RUN PIP_BUILD_CONSTRAINT= /opt/venv/bin/pip install --no-deps --no-build-isolation . && /opt/venv/bin/pip check
# Compiles for the processor of the building machine. Another type of processor compiles its own code in the background.
RUN LOSSD_CACHE_DIR=/opt/cache /opt/venv/bin/lossd compile

FROM ${BASE_IMAGE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/cache /opt/cache
# The container's published port controls access, so the service listens on every address.
# The service writes to the folder of the runs only, so the root file system may be read-only.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    LOSSD_HOST=0.0.0.0 LOSSD_PORT=8000 LOSSD_CACHE_DIR=/opt/cache XDG_DATA_HOME=/var/lib
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin lossd && chown lossd /opt/cache \
    && install --directory --owner=lossd --mode=0700 /var/lib/lossd
VOLUME /var/lib/lossd
USER 10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["lossd", "health"]
ENTRYPOINT ["lossd"]
CMD ["serve"]
