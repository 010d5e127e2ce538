#!/bin/sh
# Creates the secrets that compose.yaml mounts: the server's token, a copy of it for the user of Prometheus, and the password
# of Grafana. Existing secrets are kept. It needs root, because the files belong to the users of the containers.
set -eu

cd "$(dirname "$0")"
umask 077
[ "$(id -u)" -eq 0 ] || { echo 'prepare: This script needs root, because the files belong to the users of the containers.' >&2; exit 1; }

random() { head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n'; }

# Writes a file from standard input with its owner, completely or not at all.
put() {
    name=$1 owner=$2
    cat >".$name.new"
    chown "$owner:$owner" ".$name.new"
    chmod 600 ".$name.new"
    mv ".$name.new" "$name"
}

mkdir -p secrets
cd secrets
[ -s token ] || random | put token 10001
cmp -s token prometheus-token || put prometheus-token 65534 <token
[ -s grafana-password ] || random | put grafana-password 472
echo "prepare: The secrets are in $(pwd). The user of Grafana is admin; its password is in grafana-password." >&2
