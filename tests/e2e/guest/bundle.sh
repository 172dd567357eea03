#!/bin/sh
# bundle.sh PROGRAM ...: writes, in base64, a tar.gz of these programs of the host with their libraries and the loader,
# which run anywhere as `ld.so --library-path FOLDER FOLDER/PROGRAM`, whatever the C library there.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name; do
  program=$(command -v "$name") || { echo "bundle.sh: $name is missing; run tests/install" >&2; exit 1; }
  cp -L "$program" "$folder/$name"
  ldd "$program" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | while read -r library; do
    cp -L "$library" "$folder/"
  done
  cp -L "$(ldd "$program" | sed -n 's/^[[:space:]]*\(\/[^ ]*ld-linux[^ ]*\) .*/\1/p')" "$folder/ld.so"
done
strip --strip-unneeded "$folder"/lib*.so* 2>/dev/null || :
tar -C "$folder" -czf - . | base64 -w0
