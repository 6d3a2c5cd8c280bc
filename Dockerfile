# One image for every service of docker-compose.yml; the command says which.
#
#   docker build -t budgettune:cpu .
#   docker build -t budgettune:cuda --build-arg EXTRAS=nvidia .
#
# A package index of your own goes in as a secret, which no layer keeps: --secret id=pip,src=pip.conf
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Empty: the default index, whose wheels bring CUDA with them. Those without it are a tenth of the size: give the index of
# CPU wheels that pytorch.org names under "Get started".
ARG TORCH_INDEX=
ARG TORCH="torch==2.14.1 torchvision==0.29.1"
ARG EXTRAS=
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/venv
# From what changes least to what changes most: a change of code reinstalls neither torch nor the rest.
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} $TORCH
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt && pip install --requirement requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install ".${EXTRAS:+[$EXTRAS]}"

FROM ${PYTHON_IMAGE}
RUN useradd --uid 10001 --create-home budgettune \
    && install --directory --owner=budgettune /work /work/data /work/spool
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 BUDGETTUNE_SPOOL=/work/spool
USER 10001
WORKDIR /work
ENTRYPOINT ["budgettune"]
CMD ["--help"]
