#!/bin/sh
# Installs or updates the server on a plain Debian or Ubuntu host. Running it again changes nothing that is already correct.
# docs/deployment.md describes what it creates.
#
#   sudo deploy/install.sh [--unit kernel|argument|none] [--from WHEEL|FOLDER] [--no-packages]
#   sudo deploy/install.sh --uninstall [--purge]
#
#   --unit         the service to install: in the kernel tier (default), in the argument tier without root, or none
#   --from         a wheel, or the folder of a checkout or unpacked sdist; default: the folder of this script
#   --no-packages  do not install Debian packages
#   --uninstall    remove program and unit; keep configuration and data
#   --purge        with --uninstall: also remove configuration, data and the user
#
# A new version is installed beside the old one and tested. Then the link /opt/mcp-network-tools is moved to it in one step.
# If anything fails before that, the old installation stays in use. PYTHON selects another interpreter, 3.11 or newer.
#
# Exit status: 0 done, 1 failed, 2 wrong usage.
set -eu
umask 022

user=mcp-network-tools
link=/opt/mcp-network-tools
versions=/opt/mcp-network-tools.d
etc=/etc/mcp-network-tools
state=/var/lib/mcp-network-tools
units=/etc/systemd/system
packages='ca-certificates iproute2 libnftables1 nmap python3 python3-venv'
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
new=

say() { printf 'install: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
usage() {
    sed -n '2,/^set -eu/{/^#/{s/^# \{0,1\}//;p;}}' "$0" >&2
    exit 2
}

unit=kernel from=$here fetch=yes act=install purge=no
while [ $# -gt 0 ]; do
    case $1 in
    --unit) unit=${2-} && shift ;;
    --from) from=${2-} && shift ;;
    --no-packages) fetch=no ;;
    --uninstall) act=uninstall ;;
    --purge) purge=yes ;;
    *) usage ;;
    esac
    [ $# -gt 0 ] && shift
done
case $unit in kernel | argument | none) ;; *) usage ;; esac
if [ "$purge" = yes ] && [ "$act" != uninstall ]; then usage; fi
[ "$(id -u)" -eq 0 ] || fail 'This script needs root: sudo deploy/install.sh'

# systemctl is called only if systemd runs this host. In an image or a chroot, only the files are installed.
systemd() { [ ! -d /run/systemd/system ] || systemctl "$@"; }

uninstall() {
    for name in mcp-network-tools mcp-network-tools-argument; do
        [ ! -e "$units/$name.service" ] || systemd disable --quiet --now "$name.service" || say "Could not stop $name."
        rm -f "$units/$name.service"
    done
    systemd daemon-reload
    rm -rf "$link" "$versions"
    if [ "$purge" = yes ]; then
        rm -rf "$etc" "$state"
        rm -rf "$units/mcp-network-tools.service.d" "$units/mcp-network-tools-argument.service.d"
        if id "$user" >/dev/null 2>&1; then userdel "$user"; fi
        say 'Removed: program, configuration, data and user.'
    else
        say "Removed: the program. Kept: $etc (configuration), $state (runs, audit log, token), the user $user."
        say 'To remove these as well, run: install.sh --uninstall --purge'
    fi
}

debian_packages() {
    [ "$fetch" = yes ] || return 0
    missing=
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "Installing Debian packages:$missing"
    apt-get -qq update || fail 'The package lists could not be downloaded.'
    # shellcheck disable=SC2086 # a list of package names is meant to be split
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove install $missing >/dev/null ||
        fail 'The Debian packages could not be installed.'
}

# Removes an incomplete installation.
clean_up() {
    status=$?
    if [ -n "$new" ]; then rm -rf "$new" "$new.build"; fi
    if [ "$status" -ne 0 ] && [ -e "$link" ]; then say 'The old installation is still in use.'; fi
    exit "$status"
}

environment() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null 2>&1 || fail "$python was not found."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed. Set PYTHON to one."
    lock=$here/requirements/deploy.lock
    if [ -d "$from" ]; then lock=$from/requirements/deploy.lock; fi
    [ -r "$lock" ] || fail "$lock was not found."
    mkdir -p "$versions"
    new=$(mktemp -d "$versions/XXXXXXXX")
    chmod 755 "$new"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say 'Installing Python packages with the versions and hashes of requirements/deploy.lock'
    "$python" -m venv "$new"
    pip="$new/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install --require-hashes --only-binary :all: -r "$lock"
    wheel=$from
    if [ -d "$from" ]; then
        # The build tools get a separate environment, so that they are not part of the installation.
        "$python" -m venv "$new.build"
        build="$new.build/bin/python -m pip --quiet --disable-pip-version-check"
        $build install --require-hashes --only-binary :all: -r "$from/requirements/build.lock"
        $build wheel --no-deps --no-build-isolation --wheel-dir "$new.build/wheel" "$from"
        wheel=$(echo "$new.build/wheel/"*.whl)
    fi
    $pip install --no-deps --no-index "$wheel"
    rm -rf "$new.build"
    "$new/bin/mcp-network-tools" version >/dev/null || fail 'The installed program does not start.'
}

account() {
    id "$user" >/dev/null 2>&1 ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
    [ -d "$state" ] || install -d -m 0700 -o "$user" -g "$user" "$state"
    # A token created by the server would be printed in the journal, which other users can read.
    if [ ! -e "$state/token" ]; then
        (umask 077 && "$new/bin/python" -c 'import secrets; print(secrets.token_urlsafe(32))' >"$state/.token.new")
        chown "$user:$user" "$state/.token.new"
        mv "$state/.token.new" "$state/token"
    fi
}

# Creates a configuration file from standard input, unless it exists.
create() {
    if [ ! -e "$etc/$1" ]; then
        cat >"$etc/.$1.new"
        chown "root:$user" "$etc/.$1.new"
        chmod 0640 "$etc/.$1.new"
        mv "$etc/.$1.new" "$etc/$1"
    fi
}

configuration() {
    [ -d "$etc" ] || install -d -m 0750 -o root -g "$user" "$etc"
    create environment <<END
MCP_CONFIG_FILE=$etc/config.yaml
END
    create config.yaml <<END
# docs/configuration.md lists every key. The server reloads this file when it changes.
server:
  host: 127.0.0.1
  port: 8080
security:
  policy_file: $etc/policy.yaml
END
    create policy.yaml <<END
# The scope (docs/policy.md). Without an entry under allow, no target is allowed.
version: 1
allow: []
END
}

activate() {
    if [ -e "$link" ] && [ ! -L "$link" ]; then fail "$link is not a link. Move it away first."; fi
    old=$(readlink "$link" || true)
    ln -s "$new" "$link.new"
    mv -T "$link.new" "$link"
    kept=$new
    new=
    # The previous version stays. To go back: ln -sfn FOLDER /opt/mcp-network-tools
    for version in "$versions"/*; do
        if [ "$version" != "$kept" ] && [ "$version" != "$old" ]; then rm -rf "$version"; fi
    done
}

service() {
    [ "$unit" != none ] || return 0
    name=mcp-network-tools
    if [ "$unit" = argument ]; then name=mcp-network-tools-argument; fi
    mkdir -p "$units"
    for other in mcp-network-tools mcp-network-tools-argument; do
        if [ "$other" != "$name" ] && [ -e "$units/$other.service" ]; then
            systemd disable --quiet --now "$other.service"
            rm -f "$units/$other.service"
        fi
    done
    install -m 0644 "$here/deploy/systemd/$name.service" "$units/$name.service"
    systemd daemon-reload
    systemd try-restart "$name.service"
    say "After you have written the policy, run: systemctl enable --now $name"
}

if [ "$act" = uninstall ]; then
    uninstall
    exit 0
fi
[ -e "$from" ] || fail "$from was not found."
if [ -e "$link" ] && [ ! -L "$link" ]; then fail "$link is not a link. Move it away first."; fi
debian_packages
environment
account
configuration
activate
service
say "Installed: $("$link/bin/mcp-network-tools" version) in $link. Configuration: $etc. State: $state."
