# pydrbd and what it needs at run time, on Debian 12 (its nbdkit embeds Python 3.11).
#
#   docker build -t pydrbd .        (or: podman build, buildah bud)
#   docker run --rm pydrbd demo --mapping socket
#
# compose.yaml runs two nodes. docs/quickstart-two-machines.md says more.
FROM debian:bookworm-slim

# The list that make setup uses; only its runtime part.
COPY scripts/packages.list /opt/pydrbd/scripts/packages.list
RUN apt-get update \
    && awk '!/^#/ && $1 == "runtime" {sub(/\|.*/, "", $2); print $2}' /opt/pydrbd/scripts/packages.list | sort -u \
        | DEBIAN_FRONTEND=noninteractive xargs apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb

# The locked packages change less often than the sources, so they are a layer of their own.
WORKDIR /opt/pydrbd
COPY requirements-runtime.lock ./
RUN /usr/bin/python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --require-hashes -r requirements-runtime.lock

COPY pyproject.toml README.md LICENSE ./
COPY pydrbd pydrbd
COPY nbd_plugin nbd_plugin
COPY docker/entrypoint.sh docker/entrypoint.sh
# The compilers of the hot path come and go in this one layer.
RUN apt-get update \
    && awk '!/^#/ && $1 == "build" {print $2}' scripts/packages.list \
        | DEBIAN_FRONTEND=noninteractive xargs apt-get install -y --no-install-recommends \
    && .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index -e . \
    && test -e pydrbd/hotpath/_native.*.so && test -e pydrbd/hotpath/_filter.*.so \
    && awk '!/^#/ && $1 == "build" {print $2}' scripts/packages.list | xargs apt-get purge -y --auto-remove \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb \
    && ln -s /opt/pydrbd/.venv/bin/pydrbd /usr/local/bin/pydrbd \
    && .venv/bin/python -m compileall -q pydrbd \
    && pydrbd version

ENTRYPOINT ["/opt/pydrbd/.venv/bin/pydrbd"]
CMD ["--help"]
