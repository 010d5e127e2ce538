#!/bin/sh
# Installs the server on a plain Debian or Ubuntu host, or brings an installation up to date. Run again it changes nothing
# that is right already. docs/deployment.md describes what it makes.
#
#   sudo deploy/install.sh [--unit kernel|argument|none] [--from WHEEL|FOLDER] [--no-packages]
#   sudo deploy/install.sh --uninstall [--purge]
#
#   --unit         which service: in the kernel tier (default), in the argument tier without root, or none
#   --from         a wheel, or the folder of a checkout or unpacked sdist; the one this script is in unless given
#   --no-packages  the Debian packages are there already
#   --uninstall    removes program and unit; what was configured and recorded stays
#   --purge        with --uninstall: removes that as well, and the user
#
# A new version is installed beside the one in use, tried, and then takes its place in one step: /opt/mcp-network-tools is a
# link. Whatever fails before leaves the installation as it was. PYTHON names another interpreter, 3.11 or newer.
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
[ "$(id -u)" -eq 0 ] || fail 'root is needed: sudo deploy/install.sh'

# Only where systemd is what runs this host; in an image or a chroot its files are put into place all the same.
systemd() { [ ! -d /run/systemd/system ] || systemctl "$@"; }

uninstall() {
    for name in mcp-network-tools mcp-network-tools-argument; do
        [ ! -e "$units/$name.service" ] || systemd disable --quiet --now "$name.service" || say "could not stop $name"
        rm -f "$units/$name.service"
    done
    systemd daemon-reload
    rm -rf "$link" "$versions"
    if [ "$purge" = yes ]; then
        rm -rf "$etc" "$state"
        rm -rf "$units/mcp-network-tools.service.d" "$units/mcp-network-tools-argument.service.d"
        if id "$user" >/dev/null 2>&1; then userdel "$user"; fi
        say 'program, configuration, records and user are removed'
    else
        say "the program is removed; kept: $etc (configuration), $state (runs, decision log, token), the user $user"
        say 'to remove these as well: install.sh --uninstall --purge'
    fi
}

debian_packages() {
    [ "$fetch" = yes ] || return 0
    missing=
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "Debian packages:$missing"
    apt-get -qq update || fail 'the package lists could not be fetched'
    # shellcheck disable=SC2086 # a list of package names is meant to be split
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends --no-remove install $missing >/dev/null ||
        fail 'the Debian packages could not be installed'
}

# Leaves nothing half made behind.
clean_up() {
    status=$?
    if [ -n "$new" ]; then rm -rf "$new" "$new.build"; fi
    if [ "$status" -ne 0 ] && [ -e "$link" ]; then say 'the installation that was there is in use as before'; fi
    exit "$status"
}

environment() {
    python=${PYTHON:-python3}
    command -v "$python" >/dev/null 2>&1 || fail "there is no $python"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed: set PYTHON"
    lock=$here/requirements/deploy.lock
    if [ -d "$from" ]; then lock=$from/requirements/deploy.lock; fi
    [ -r "$lock" ] || fail "there is no $lock"
    mkdir -p "$versions"
    new=$(mktemp -d "$versions/XXXXXXXX")
    chmod 755 "$new"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say 'Python packages, versions and hashes as in requirements/deploy.lock'
    "$python" -m venv "$new"
    pip="$new/bin/python -m pip --quiet --disable-pip-version-check"
    $pip install --require-hashes --only-binary :all: -r "$lock"
    wheel=$from
    if [ -d "$from" ]; then
        # What builds the wheel is not part of what runs.
        "$python" -m venv "$new.build"
        build="$new.build/bin/python -m pip --quiet --disable-pip-version-check"
        $build install --require-hashes --only-binary :all: -r "$from/requirements/build.lock"
        $build wheel --no-deps --no-build-isolation --wheel-dir "$new.build/wheel" "$from"
        wheel=$(echo "$new.build/wheel/"*.whl)
    fi
    $pip install --no-deps --no-index "$wheel"
    rm -rf "$new.build"
    "$new/bin/mcp-network-tools" version >/dev/null || fail 'what was installed does not start'
}

account() {
    id "$user" >/dev/null 2>&1 ||
        useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
    [ -d "$state" ] || install -d -m 0700 -o "$user" -g "$user" "$state"
    # A token made by the server would be shown once in the journal, which others read too.
    if [ ! -e "$state/token" ]; then
        (umask 077 && "$new/bin/python" -c 'import secrets; print(secrets.token_urlsafe(32))' >"$state/.token.new")
        chown "$user:$user" "$state/.token.new"
        mv "$state/.token.new" "$state/token"
    fi
}

# A file of the owner's is made once and never written again.
give() {
    if [ ! -e "$etc/$1" ]; then
        cat >"$etc/.$1.new"
        chown "root:$user" "$etc/.$1.new"
        chmod 0640 "$etc/.$1.new"
        mv "$etc/.$1.new" "$etc/$1"
    fi
}

configuration() {
    [ -d "$etc" ] || install -d -m 0750 -o root -g "$user" "$etc"
    give environment <<END
MCP_CONFIG_FILE=$etc/config.yaml
END
    give config.yaml <<END
# docs/configuration.md has every key. Read again when it changes.
server:
  host: 127.0.0.1
  port: 8080
security:
  policy_file: $etc/policy.yaml
END
    give policy.yaml <<END
# The scope (docs/policy.md). Until a network stands here, nothing may be touched.
version: 1
allow: []
END
}

into_use() {
    if [ -e "$link" ] && [ ! -L "$link" ]; then fail "$link is not a link: move it away first"; fi
    old=$(readlink "$link" || true)
    ln -s "$new" "$link.new"
    mv -T "$link.new" "$link"
    kept=$new
    new=
    # The version before stays for going back: ln -sfn FOLDER /opt/mcp-network-tools
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
    say "when the policy is written: systemctl enable --now $name"
}

if [ "$act" = uninstall ]; then
    uninstall
    exit 0
fi
[ -e "$from" ] || fail "there is no $from"
if [ -e "$link" ] && [ ! -L "$link" ]; then fail "$link is not a link: move it away first"; fi
debian_packages
environment
account
configuration
into_use
service
say "$("$link/bin/mcp-network-tools" version) is in $link; configuration in $etc, state in $state"
