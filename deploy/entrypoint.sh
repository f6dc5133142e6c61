#!/bin/sh
# Start with the kernels that were compiled when the image was built: they must lie where they could be written.
set -eu
if [ ! -d "$NUMBA_CACHE_DIR" ]; then
  cp -R /opt/kernels "$NUMBA_CACHE_DIR"
fi
exec "$@"
