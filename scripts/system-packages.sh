#!/bin/sh
# Installs the Debian packages that `make run` or `make test` needs. It starts no service of these packages, now or at the
# next boot, and removes no installed package.
#
#   scripts/system-packages.sh run     nmap and Python's venv module
#   scripts/system-packages.sh test    the same, and everything the tests run against
#
# Exit status: 0 all programs are installed, 1 a program is missing and could not be installed, 2 wrong usage.
# It looks for programs, not for packages, so another variant of nginx or your own PostgreSQL is enough.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
log=$root/.cache/system-packages.log
units_before=$root/.cache/system-packages.units
policy=/usr/sbin/policy-rc.d
policy_saved=$policy.mcp-network-tools-saved
unpacked=$root/.cache/programs
policy_mark='# mcp-network-tools: only for one run of apt-get'
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$unpacked/usr/sbin

# One line for each package: its name, then the programs it must provide.
run_packages='
nmap nmap
'
test_packages='
iproute2 ip ss
nftables nft
util-linux unshare nsenter setpriv flock
procps sysctl
openssl openssl
nginx-light nginx
openssh-client ssh-keygen
openssh-server sshd
redis-server redis-server
prometheus prometheus promtool
chromium chromium
dnsmasq-base dnsmasq
bind9 named
tftpd-hpa in.tftpd
vsftpd vsftpd
opensmtpd smtpd
snmpd snmpd
samba smbd
mariadb-server mariadbd
masscan masscan
fping fping
passt pasta
faketime faketime
debootstrap debootstrap
shellcheck shellcheck
systemd systemd-analyze
'

say() { printf '%s\n' "$*" >&2; }

# Prints the packages of the list on standard input of which a program is missing.
missing_of() {
    while read -r package programs; do
        for program in $programs; do
            command -v "$program" >/dev/null 2>&1 || { printf '%s ' "$package"; break; }
        done
    done
}

postgresql_is_there() {
    for server in /usr/lib/postgresql/*/bin/postgres; do
        [ -x "$server" ] && return 0
    done
    return 1
}

# Debian's python3 has no ensurepip; other interpreters have both modules.
venv_is_there() {
    command -v python3 >/dev/null 2>&1 && python3 -S -c '
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("venv", "ensurepip"))))' 2>/dev/null
}

missing_packages() {
    printf '%s' "$run_packages" | missing_of
    venv_is_there || printf 'python3-venv '
    if [ "$1" = test ]; then
        printf '%s' "$test_packages" | missing_of
        postgresql_is_there || printf 'postgresql '
        command -v ntpd >/dev/null 2>&1 || printf 'ntpsec '
    fi
}

# Two runs at the same time would overwrite each other's policy file. Every Debian has flock (util-linux).
take_lock() {
    exec 9>/var/lock/mcp-network-tools-packages
    flock -w 600 9 || { say 'Another installation has held the lock for ten minutes.'; exit 1; }
}

# invoke-rc.d and deb-systemd-invoke ask this file before they start a daemon; 101 means no (invoke-rc.d(8)).
# The mark identifies a file that a killed run left; the original file is saved beside it.
our_policy_exists() {
    grep -qsF "$policy_mark" "$policy" || [ -e "$policy_saved" ]
}

forbid_starting() {
    if [ -e "$policy" ] && ! grep -qF "$policy_mark" "$policy"; then
        mv -f "$policy" "$policy_saved"
    fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$policy_mark" >"$policy"
    chmod 755 "$policy"
}

allow_starting() {
    if [ -e "$policy" ] && grep -qF "$policy_mark" "$policy"; then
        rm -f "$policy"
    fi
    if [ -e "$policy_saved" ]; then
        mv -f "$policy_saved" "$policy"
    fi
}

apt() {
    # --no-remove: an installation must never remove another package of this machine (for example a mail server).
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-remove --no-install-recommends \
        -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold "$@" >>"$log" 2>&1 </dev/null
}

fail() {
    say "$1 The end of the output of apt-get (all of it is in $log):"
    tail -n 15 "$log" >&2
    exit 1
}

# Debian allows one time daemon: installing ntpsec would remove the one that keeps this machine's clock. Its program runs
# from any folder, so it is unpacked into the checkout instead.
unpack_ntpsec() {
    mkdir -p "$unpacked"
    (cd "$unpacked" && rm -f ntpsec_*.deb && apt download -o APT::Sandbox::User=root ntpsec &&
        dpkg -x ntpsec_*.deb . && rm -f ntpsec_*.deb) && apt install libbsd0 libcap2 libssl3
}

# policy-rc.d prevents the start of a service now, but its package still enables it for the next boot.
enabled_units() {
    find /etc/systemd/system -type l -path '*.wants/*' 2>/dev/null | sort
}

disable_new_units() {
    command -v systemctl >/dev/null 2>&1 || return 0
    enabled_units | comm -13 "$units_before" - | sed 's|.*/||' | sort -u | while read -r unit; do
        systemctl --quiet disable "$unit" >>"$log" 2>&1 || say "Could not disable $unit. It starts at the next boot."
    done
}

leave_as_found() {
    disable_new_units
    allow_starting
}

install_packages() {
    mkdir -p "${log%/*}"
    : >"$log"
    take_lock
    enabled_units >"$units_before"
    trap leave_as_found EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    forbid_starting
    say "Downloading the package lists"
    apt update || { say 'The download failed. Trying again in five seconds.'; sleep 5; apt update; } ||
        fail 'The package lists could not be downloaded.'
    say "Downloading: $*"
    ordinary=$(printf '%s\n' "$@" | grep -vx ntpsec | tr '\n' ' ')
    if [ -n "$ordinary" ]; then
        # shellcheck disable=SC2086
        apt install --download-only $ordinary || fail 'The packages could not be downloaded.'
    fi
    for package in $ordinary; do
        say "Installing $package"
        apt install "$package" || fail "Installing $package failed."
    done
    case " $* " in *" ntpsec "*)
        say 'Unpacking ntpsec'
        unpack_ntpsec || fail 'ntpsec could not be downloaded and unpacked.'
        ;;
    esac
}

mode=${1-}
case $mode in
run | test) ;;
*)
    say "usage: $0 run|test"
    exit 2
    ;;
esac

if our_policy_exists && [ "$(id -u)" -eq 0 ]; then
    take_lock # wait for another run; if there is none, a killed run left the file
    allow_starting
    exec 9>&-
fi

missing=$(missing_packages "$mode")
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    say "Programs of these Debian packages are missing, and apt-get was not found: $missing"
    say 'Install them with the package manager of this system.'
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    say "Missing packages: $missing"
    say "Run this command, and then start again:  sudo $root/scripts/system-packages.sh $mode"
    exit 1
fi

# shellcheck disable=SC2086 # a list of package names is meant to be split
install_packages $missing
still=$(missing_packages "$mode")
if [ -n "$still" ]; then
    say "Still missing after the installation: $still"
    exit 1
fi
say 'All programs are installed.'
