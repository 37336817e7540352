#!/bin/bash
# The first quarter of an hour on a GPU, from a checkout, without a network: install the wheels that were brought along,
# then measure. JSON of each part and the page lie in OUT after each part, whatever ends the rest.
#   WHEELS=wheels OUT=out bash launch/gpu/run.sh [further options of `debias bench quarter`]
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
site=${SITE:-$(mktemp -d)}
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$site:$PWD/pipeline:$PWD/eval${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
exec "$python" -m debias.cli bench quarter -o "${OUT:-quarter}" "$@"
