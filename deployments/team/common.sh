# What setup_server.sh and setup_worker.sh share; sourced by both.
# shellcheck shell=bash

code=/opt/musicgen-flows    # the checkout: at the same place on every machine, since deployments name it
state=/var/lib/musicgen     # home of the services' user: their packages, Prefect's files, caches
config=/etc/musicgen        # environment files
units=/etc/systemd/system
export UV_PYTHON_INSTALL_DIR=$state/python # where uv puts a Python of its own if the machine has no 3.11 or 3.12
export UV_LINK_MODE=copy DEBIAN_FRONTEND=noninteractive

# Not root's own Pythons, which the services' user can't read.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

fail() {
    echo "error: $*" >&2
    exit 1
}

check_machine() {
    [[ $EUID -eq 0 ]] || fail "this needs root. Run it with sudo"
    [[ $(realpath "$(dirname "$0")/../..") == "$code" ]] || fail "the repository must be at $code. Clone it there"
    command -v apt-get >/dev/null || fail "this is no Debian: apt-get is missing"
    cd "$code" || exit
}

# install_debian PACKAGE...
install_debian() {
    local package
    for package; do
        if [[ $(dpkg-query -Wf '${Status}' "$package" 2>/dev/null) != "install ok installed" ]]; then
            echo "Installing Debian's $*"
            apt-get update -qq
            apt-get install -qq -y --no-install-recommends "$@" >/dev/null
            return
        fi
    done
}

make_user() {
    if ! id musicgen >/dev/null 2>&1; then
        useradd --system --create-home --home-dir "$state" --shell /usr/sbin/nologin musicgen
    fi
    install -d -m 755 "$state" "$config"
}

# install_packages VENV [UV_EXPORT_OPTION...]: the pinned versions, and this checkout; nothing if they are there.
install_packages() {
    local venv=$1 wanted
    shift
    if [[ ! -x $state/uv/bin/uv ]]; then
        python3 -m venv "$state/uv"
        "$state/uv/bin/pip" install --quiet uv
    fi
    wanted=$("$state/uv/bin/uv" export --quiet --no-dev --no-header "$@")
    if [[ -e $venv/installed.txt && $(<"$venv/installed.txt") == "$wanted" ]]; then
        return
    fi
    echo "Installing Python packages in $venv"
    "$state/uv/bin/uv" venv --quiet --allow-existing --python '>=3.11,<3.13' "$venv"
    # Compiled now: the services' user can't write here, and every job would compile Prefect anew.
    "$state/uv/bin/uv" pip sync --quiet --compile-bytecode --python "$venv/bin/python" - <<<"$wanted"
    echo "$wanted" >"$venv/installed.txt"
}

# install_unit FILE
install_unit() {
    if ! cmp --silent "$code/deployments/team/$1" "$units/$1"; then
        install -m 644 "$code/deployments/team/$1" "$units/$1"
        systemctl daemon-reload
    fi
}

# start_unit UNIT FILE...: at every boot too; restarted only if a FILE is newer than its start, since that ends its jobs.
start_unit() {
    local unit=$1 file since
    shift
    if ! systemctl --quiet is-enabled "$unit" 2>/dev/null; then
        systemctl --quiet enable "$unit"
    fi
    systemctl start "$unit"
    since=$(systemctl show --timestamp=unix --property ActiveEnterTimestamp --value "$unit")
    for file; do
        if [[ $(stat -c %Y "$file") -gt ${since#@} ]]; then
            echo "Restarting $unit: $file is newer"
            systemctl restart "$unit"
            return
        fi
    done
}

# as_musicgen COMMAND...: in the clients' environment, which holds the password: never on a command line.
as_musicgen() (
    set -a
    # shellcheck disable=SC1091
    . "$config/client.env"
    set +a
    HOME=$state runuser -u musicgen -- "$@"
)
