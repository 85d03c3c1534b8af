#!/usr/bin/env bash
# `pytest ARGUMENTS` in network, process and mount namespaces of its own, where this machine permits them: with the
# process that this starts ends everything that the tests have started.
#   run.sh PYTHON ARGUMENTS...
set -uo pipefail
separate=(unshare --mount --net --pid --fork --kill-child --mount-proc)
if "${separate[@]}" true 2> /dev/null; then
  # A shell in between, because the first process of a namespace must see to the orphans.
  PRDP_OWN_NAMESPACES=1 exec "${separate[@]}" bash -c '"$0" -m pytest "$@"; exit $?' "$@"
fi
exec "$1" -m pytest "${@:2}"
