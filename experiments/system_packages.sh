#!/usr/bin/env bash
# What no Python package brings: a C++ compiler (decoding on CPU cores, torch.compile) and bubblewrap (the sandbox).
# Installs what is missing if it may, and says so; otherwise says what to install, and what goes without.
set -euo pipefail

missing=()
command -v "${CXX:-c++}" >/dev/null || missing+=(g++)
command -v bwrap >/dev/null || missing+=(bubblewrap)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 && exit 0
fi
echo "please install: ${missing[*]}  (without g++ decoding and training are slower, without bubblewrap no program is run)" >&2
