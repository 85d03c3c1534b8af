#!/usr/bin/env bash
# Makes a node ready: a virtual environment in ~/prdp/.venv with the versions of constraints.txt, for every shell.
# `ray up` runs it on each node; where everything is installed already, it changes nothing.
set -euo pipefail
cd "$HOME/prdp"
PYTHON_VERSION=3.11   # the same on all nodes: Ray refuses others
UV_VERSION=0.13.9

chmod 600 "$HOME/.ray/auth_token"
grep -qs 'prdp/environment.sh' "$HOME/.bashrc" || echo '. ~/prdp/environment.sh' >> "$HOME/.bashrc"

make_venv() {
  if command -v "python$PYTHON_VERSION" > /dev/null; then
    "python$PYTHON_VERSION" -m venv --clear .venv
  else
    python3 -m venv --clear .uv && .uv/bin/python -m pip install --quiet "uv==$UV_VERSION"
    .uv/bin/uv venv --quiet --clear --seed --python "$PYTHON_VERSION" .venv
  fi
}

install() {
  local pip=(.venv/bin/python -m pip install --quiet -c constraints.txt)
  # torch first: its exact version, in the build for this machine.
  if command -v nvidia-smi > /dev/null; then
    "${pip[@]}" torch
  else
    "${pip[@]}" torch --extra-index-url https://download.pytorch.org/whl/cpu
  fi
  .venv/bin/python -c '
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt
  "${pip[@]}" -r requirements.txt
}

wanted="$(cat constraints.txt pyproject.toml node.sh | sha256sum)"
if [ "$(cat installed 2> /dev/null)" != "$wanted" ]; then
  make_venv
  install
  echo "$wanted" > installed
fi
