#!/bin/sh
# Makes the secrets that compose.yaml mounts: the server's token twice, once for each user that reads it, and Grafana's
# password. What is there already stays as it is. Run as root, because the containers' users own the files.
set -eu

cd "$(dirname "$0")"
umask 077
[ "$(id -u)" -eq 0 ] || { echo 'prepare: run it as root; the files belong to the users inside the containers' >&2; exit 1; }

random() { head -c 32 /dev/urandom | od -An -vtx1 | tr -d ' \n'; }

# Appears whole or not at all, and with its owner.
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
echo "prepare: secrets are in $(pwd); Grafana's user is admin, its password in grafana-password" >&2
