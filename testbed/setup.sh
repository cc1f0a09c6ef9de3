#!/usr/bin/env bash
# Makes a fresh Debian 12 ready: Debian packages, then a virtual environment with the locked
# versions. Idempotent: does, and says, only what is missing.
# usage: setup.sh VENV
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")

missing=()
while read -r package; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
    missing+=("$package")
done < <(sed 's/#.*//; /^\s*$/d' "$here/debian-packages.txt")

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
# The guest image is made from the machine's own package lists, so they have to be there.
if [ "${#missing[@]}" -gt 0 ] || ! apt-cache show mmdebstrap >/dev/null 2>&1; then
  echo "setup: apt-get update"
  "${apt_get[@]}" update >/dev/null
fi
if [ "${#missing[@]}" -gt 0 ]; then
  echo "setup: installing Debian packages: ${missing[*]}"
  "${apt_get[@]}" install --no-install-recommends "${missing[@]}" >/dev/null
fi

stamp=$(cat "$root/pyproject.toml" "$root/requirements.lock" "$0" | sha256sum)
if [ "$(cat "$venv/.kawarimi-setup" 2>/dev/null)" != "$stamp" ]; then
  echo "setup: making $venv with the versions of requirements.lock"
  rm -rf "$venv"
  /usr/bin/python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check -r "$root/requirements.lock"
  "$venv/bin/pip" install --quiet --quiet --disable-pip-version-check --no-deps -e "$root"
  echo "$stamp" >"$venv/.kawarimi-setup"
fi
