#!/bin/sh
# uninstall.sh [--purge]: undo tools/setup.sh and tests/vm/vmlab-setup.
#
# Debian packages stay unless --purge is given: something else may use them by now.
set -eu
cd "$(dirname "$0")/.."
record=.cache/debian-packages # what setup.sh installed here, a package a line

rm -rf .venv "${VMLAB_DIR:-$HOME/.cache/vmlab}"
if [ -s $record ]; then
    packages=$(sort -u $record | tr '\n' ' ')
    if [ "${1-}" = --purge ]; then
        # shellcheck disable=SC2086  # a list of words
        DEBIAN_FRONTEND=noninteractive apt-get -qy purge --auto-remove $packages
        rm -rf .cache
    else
        echo "uninstall: these Debian packages were installed by make setup; make uninstall PURGE=1 removes them:"
        echo "    $packages"
    fi
fi
