#!/bin/sh
# Installs the Debian packages that `make test-system` needs, where they are missing.
# May be run again. Starts no service and makes no database cluster: the tests start
# their own servers, in temporary folders.
set -eu
checkout=$(cd "$(dirname "$0")/.." && pwd)

PACKAGES="postgresql-15 pgbouncer libfaketime prometheus systemd curl procps chromium fonts-dejavu-core"
# Unpacked into .system-tools of the checkout and not installed: another kubectl may own the same path.
UNPACKED="kubernetes-client debootstrap"

# Debian's npm brings hundreds of packages; any other will do.
command -v npm >/dev/null 2>&1 || PACKAGES="$PACKAGES npm"

refuse() {
    echo "tests/install-debian.sh: $1" >&2
    exit 1
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

install() {
    # RUNLEVEL=1 keeps sysvinit scripts from starting, as in single-user mode.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 "$@"
}

# Debian makes and starts a cluster `main` when a server is installed, unless told not to.
install_server() {
    install postgresql-common
    conf=/etc/postgresql-common/createcluster.conf
    cp -p "$conf" "$conf.before-curfewd"
    trap 'mv "$conf.before-curfewd" "$conf"' EXIT
    echo "create_main_cluster = false" >> "$conf"
    install "$1"
    mv "$conf.before-curfewd" "$conf"
    trap - EXIT
}

# A masked unit is not started by its package; afterwards it is left disabled, so that
# it does not start with the machine either.
install_without_service() {
    if [ -d /run/systemd/system ]; then systemctl mask --quiet --runtime "$1.service"; fi
    install "$1"
    if [ -d /run/systemd/system ]; then systemctl unmask --quiet --runtime "$1.service"; fi
    update-rc.d "$1" disable
    if command -v systemctl >/dev/null 2>&1; then
        systemctl disable --quiet "$1.service" 2>/dev/null || true
    fi
}

is_unpacked() {
    [ -d "$checkout/.system-tools/debian/$1" ]
}

unpack() {
    tools=$checkout/.system-tools
    mkdir -p "$tools/debian"
    echo '*' > "$tools/.gitignore"
    temporary=$(mktemp -d "$tools/unpack.XXXXXX")
    (cd "$temporary" && apt-get download -qq -o APT::Sandbox::User=root "$1" && dpkg-deb -x ./*.deb files)
    mv "$temporary/files" "$tools/debian/$1"
    rm -r "$temporary"
    # Whoever owns the checkout runs the tests.
    chown --reference="$checkout" "$tools" "$tools/.gitignore" "$tools/debian"
    chown -R --reference="$checkout" "$tools/debian/$1"
}

[ -f /etc/debian_version ] && command -v apt-get >/dev/null 2>&1 ||
    refuse "this is not Debian: install by other means: $PACKAGES $UNPACKED"

missing=""
for package in $PACKAGES; do
    is_installed "$package" || missing="$missing $package"
done
for package in $UNPACKED; do
    is_unpacked "$package" || missing="$missing $package"
done
if [ -z "$missing" ]; then
    echo "Already installed: $PACKAGES $UNPACKED"
    exit 0
fi
[ "$(id -u)" -eq 0 ] || refuse "only root can install packages. Missing:$missing"

echo "Installing$missing (no service is started)"
apt-get update -qq
for package in $missing; do
    case $package in
    kubernetes-client | debootstrap) unpack "$package" ;;
    postgresql-*) install_server "$package" ;;
    pgbouncer | prometheus) install_without_service "$package" ;;
    *) install "$package" ;;
    esac
done
echo "Installed$missing"
